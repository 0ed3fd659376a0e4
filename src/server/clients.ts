import { LRUCache } from 'lru-cache';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { Server as TlsServer } from 'node:https';
import { isIP, type Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { Repo } from '../oci/repo.ts';
import type { Logger } from '../telemetry/log.ts';
import type { Clock } from '../util/clock.ts';
import { MirrorError } from '../util/errors.ts';
import { clientNetwork, plainAddress, type Networks } from '../util/networks.ts';
import { Slots } from '../util/slots.ts';
import { Htpasswd } from './htpasswd.ts';
import { Limits, type LimitsOptions } from './limits.ts';
import { permits, rulesFor, type Rules } from './permissions.ts';

export interface ClientGroup extends Rules {
  readonly name: string;
  /** Undefined: from everywhere. */
  readonly from: Networks | undefined;
  /** Names in which `*` stands for anything. Undefined: whoever it is, or nobody in particular. */
  readonly users: readonly RegExp[] | undefined;
}

export interface ClientsOptions extends LimitsOptions {
  /** Undefined: nobody has to say who it is. */
  readonly htpasswd: string | undefined;
  /** Undefined: everybody. */
  readonly allowFrom: Networks | undefined;
  /** Whose X-Forwarded-For counts. */
  readonly trustedProxies: Networks | undefined;
  readonly rules: Rules;
  readonly groups: readonly ClientGroup[];
}

export interface ClientsContext {
  readonly clock: Clock;
  readonly log: Logger;
}

/** Who asks. */
export interface Client {
  readonly address: string;
  /** As htpasswd or the client's certificate names it. */
  readonly user: string | undefined;
  readonly rules: Rules;
}

const maxRemembered = 10_000;
/** Wrong passwords of one client in a minute; more are not even looked at. */
const maxFailures = 20;
const failuresForMs = 60_000;
const maxHops = 20;
const maxLoginLength = 1024;
/** Passwords that one client has compared at once, and that wait for it: of one and in all. */
const comparedAtOnce = 2;
const maxWaitingOfOne = 200;
const maxWaiting = 2000;
const waitMs = 20_000;
const busyForMs = 5000;

/**
 * Who the clients are and what they may do: the address, behind trusted proxies that which they name; the user; the
 * group; and the limits of each. Nothing that a client sends is believed but by a trusted proxy, a password or a
 * certificate.
 */
export class Clients {
  readonly #context: ClientsContext;
  readonly #limits: Limits;
  /** Who client certificates speak of. */
  readonly #certified = new WeakMap<Socket, { name: string | undefined }>();
  /** Connections above the limit: they are told so, and closed. */
  readonly #excess = new WeakSet<Socket>();
  readonly #failures: LRUCache<string, number>;
  /** Whether an address is let in and whether it is a trusted proxy's: networks are not searched on every request. */
  readonly #known = new LRUCache<string, { isAllowed: boolean; isProxy: boolean }>({ max: maxRemembered });
  #options: ClientsOptions;
  #htpasswd: Htpasswd | undefined;
  /** Passwords that are compared or wait for it, by client and in all. */
  readonly #comparing = new Map<string, { readonly slots: Slots; count: number }>();
  #waiting = 0;

  /** Throws when the htpasswd file cannot be used. */
  constructor(options: ClientsOptions, context: ClientsContext) {
    this.#options = options;
    this.#context = context;
    this.#limits = new Limits(() => this.#options, context.clock);
    this.#htpasswd = this.#open(options);
    this.#failures = new LRUCache({
      max: maxRemembered,
      ttl: failuresForMs,
      perf: { now: () => context.clock.monotonic() },
      ttlResolution: 0,
    });
  }

  /**
   * Checks other options. Throws when the htpasswd file cannot be used. What it returns makes them count from the next request on.
   */
  prepare(options: ClientsOptions): () => void {
    const isSameFile = options.htpasswd === this.#options.htpasswd;
    const htpasswd = isSameFile ? this.#htpasswd : this.#open(options);
    return () => {
      if (!isSameFile) void this.#htpasswd?.close();
      this.#htpasswd = htpasswd;
      this.#options = options;
      this.#known.clear();
    };
  }

  /** Counts the connections of a server. */
  watch(server: Server): void {
    const event = server instanceof TlsServer ? 'secureConnection' : 'connection';
    server.on(event, (socket: Socket) => this.#connected(socket));
  }

  /** Whose request it is: of the connection, or as a trusted proxy says. */
  addressOf(req: IncomingMessage): string {
    const peer = plainAddress(req.socket.remoteAddress ?? '');
    return this.#look(peer).isProxy ? this.#forwarded(req, peer) : peer;
  }

  /** Throws `denied`, `unauthorized` or `client-limited`. */
  admit(req: IncomingMessage, res: ServerResponse, address: string): Client | Promise<Client> {
    const { socket } = req;
    if (!this.#look(address).isAllowed)
      throw new MirrorError('denied', `client ${address}: not among clients.allowFrom`);
    if (this.#excess.has(socket)) {
      res.shouldKeepAlive = false;
      throw this.#limits.tooManyConnections(address);
    }
    if (this.#options.maxConnections !== Infinity) this.#countForwarded(address, socket, res);
    this.#limits.request(address);
    if (!this.#htpasswd) return this.#client(address, this.#certifiedName(socket));
    return this.#authenticate(this.#htpasswd, req.headers.authorization, address);
  }

  /** Throws `denied`. `tag`: undefined for digests and lists. */
  authorize({ rules, address, user }: Client, repo: Repo, tag: string | undefined): void {
    if (permits(rules, repo, tag)) return;
    const who = user === undefined ? `client ${address}` : `user ${user}`;
    const what = tag === undefined ? repo.key : `${repo.key}:${tag}`;
    throw new MirrorError(
      'denied',
      `${what}: not allowed here for ${who}; see "allow" and "deny" of the mirror`,
    );
  }

  async close(): Promise<void> {
    await this.#htpasswd?.close();
  }

  async #authenticate(htpasswd: Htpasswd, header: string | undefined, address: string): Promise<Client> {
    const login = parseBasic(header);
    if (!login) throw new MirrorError('unauthorized', 'a user name and a password are needed here');
    const { user } = login;
    let isRight = await htpasswd.knows(user, login.password);
    isRight ??= await this.#compare(htpasswd, login, address);
    if (!isRight) throw new MirrorError('unauthorized', 'wrong user name or password');
    return this.#client(address, user);
  }

  /** A few at a time for each client, so that guessers wait for themselves. */
  async #compare(
    htpasswd: Htpasswd,
    { user, password }: { user: string; password: string },
    address: string,
  ): Promise<boolean> {
    const key = clientNetwork(address);
    const line = this.#comparing.get(key) ?? { slots: new Slots(comparedAtOnce), count: 0 };
    const tooMany = (retryAfterMs: number): MirrorError =>
      new MirrorError('client-limited', `client ${address}: too many passwords to look at`, { retryAfterMs });
    if (line.count >= maxWaitingOfOne || this.#waiting >= maxWaiting) throw tooMany(busyForMs);
    this.#comparing.set(key, line);
    line.count += 1;
    this.#waiting += 1;
    const give = await line.slots.take(AbortSignal.timeout(waitMs)).catch(() => undefined);
    try {
      if (!give) throw tooMany(busyForMs);
      const known = await htpasswd.knows(user, password);
      if (known !== undefined) return known;
      const failures = this.#failures.get(key) ?? 0;
      if (failures >= maxFailures) throw tooMany(failuresForMs);
      const isRight = await htpasswd.check(user, password);
      if (!isRight) this.#failures.set(key, (this.#failures.get(key) ?? 0) + 1, { noUpdateTTL: true });
      return isRight;
    } finally {
      give?.();
      this.#waiting -= 1;
      line.count -= 1;
      if (line.count === 0) this.#comparing.delete(key);
    }
  }

  #client(address: string, user: string | undefined): Client {
    const { rules, groups } = this.#options;
    const group = groups.find(
      ({ from, users }) =>
        (from === undefined || from.contains(address)) &&
        (users === undefined || (user !== undefined && users.some((form) => form.test(user)))),
    );
    return { address, user, rules: rulesFor(rules, group) };
  }

  #look(address: string): { isAllowed: boolean; isProxy: boolean } {
    const known = this.#known.get(address);
    if (known) return known;
    const { allowFrom, trustedProxies } = this.#options;
    const look = {
      isAllowed: allowFrom?.contains(address) ?? true,
      isProxy: trustedProxies?.contains(address) ?? false,
    };
    this.#known.set(address, look);
    return look;
  }

  /** From the right, since only the proxies that we trust have written there: the first address that is none of them. */
  #forwarded(req: IncomingMessage, peer: string): string {
    const header = req.headers['x-forwarded-for'];
    const hops = (Array.isArray(header) ? header.join(',') : (header ?? '')).split(',');
    let address = peer;
    for (const hop of hops.reverse().slice(0, maxHops)) {
      const next = plainAddress(
        hop
          .trim()
          .replace(/^\[(.*)\](?::\d+)?$/, '$1')
          .replace(/^([\d.]+):\d+$/, '$1'),
      );
      // A trusted proxy that names nobody does not speak for itself.
      if (isIP(next) === 0) return hop.trim() === '' ? address : 'unknown';
      address = next;
      if (!this.#look(next).isProxy) break;
    }
    return address;
  }

  /** A proxy's connections are not its clients': what runs at once is counted instead. */
  #countForwarded(address: string, socket: Socket, res: ServerResponse): void {
    if (!this.#look(plainAddress(socket.remoteAddress ?? '')).isProxy) return;
    const { excess, close } = this.#limits.connection(address);
    res.once('close', close);
    if (excess > 0) throw this.#limits.tooManyConnections(address);
  }

  #connected(socket: Socket): void {
    const { maxConnections } = this.#options;
    const peer = plainAddress(socket.remoteAddress ?? '');
    if (this.#look(peer).isProxy) return;
    const { excess, close } = this.#limits.connection(peer);
    socket.once('close', close);
    if (excess > maxConnections) socket.destroy();
    else if (excess > 0) this.#excess.add(socket);
  }

  #certifiedName(socket: Socket): string | undefined {
    if (!(socket instanceof TLSSocket) || !socket.authorized) return undefined;
    const known = this.#certified.get(socket);
    if (known) return known.name;
    const { CN } = socket.getPeerCertificate().subject;
    const name = Array.isArray(CN) ? CN[0] : CN;
    this.#certified.set(socket, { name });
    return name;
  }

  #open({ htpasswd }: ClientsOptions): Htpasswd | undefined {
    return htpasswd === undefined ? undefined : new Htpasswd(htpasswd, this.#context.log);
  }
}

function parseBasic(header: string | undefined): { user: string; password: string } | undefined {
  const [, encoded] = /^Basic +([A-Za-z0-9+/=_-]+)$/i.exec(header ?? '') ?? [];
  if (encoded === undefined || encoded.length > 2 * maxLoginLength) return undefined;
  const [, user, password] = /^([^:]+):(.*)$/s.exec(Buffer.from(encoded, 'base64').toString('utf8')) ?? [];
  return user === undefined || password === undefined ? undefined : { user, password };
}
