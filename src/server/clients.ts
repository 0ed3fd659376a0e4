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
  /** Undefined: any address. */
  readonly from: Networks | undefined;
  /** User name patterns. Undefined: any client, authenticated or not. */
  readonly users: readonly RegExp[] | undefined;
}

export interface ClientsOptions extends LimitsOptions {
  /** Path. Undefined: no password is required. */
  readonly htpasswd: string | undefined;
  /** Undefined: any address. */
  readonly allowFrom: Networks | undefined;
  /** Peers whose X-Forwarded-For is honoured. */
  readonly trustedProxies: Networks | undefined;
  readonly rules: Rules;
  readonly groups: readonly ClientGroup[];
}

export interface ClientsContext {
  readonly clock: Clock;
  readonly log: Logger;
}

/** The client of a request. */
export interface Client {
  readonly address: string;
  /** User name from htpasswd, or CN of the client certificate. */
  readonly user: string | undefined;
  readonly rules: Rules;
}

const maxRemembered = 10_000;
/** Wrong passwords per client and minute; further ones are refused unchecked. */
const maxFailures = 20;
const failuresForMs = 60_000;
const maxHops = 20;
const maxLoginLength = 1024;
/** Concurrent password checks per client. */
const checksPerClient = 2;
/** Password checks running or queued, per client and in total. */
const maxPendingPerClient = 200;
const maxPending = 2000;
const maxQueueMs = 20_000;
/** Retry-After when the queue is full. */
const busyForMs = 5000;

/**
 * Identifies clients (address, user, group), and enforces access rules and limits. Addresses come from the connection, or
 * from X-Forwarded-For if the peer is a trusted proxy; users from a checked password or client certificate.
 */
export class Clients {
  readonly #context: ClientsContext;
  readonly #limits: Limits;
  /** CN of each connection's client certificate. */
  readonly #certificateNames = new WeakMap<Socket, { name: string | undefined }>();
  /** Connections above maxConnections: their first request gets 429, then they close. */
  readonly #excess = new WeakSet<Socket>();
  readonly #failures: LRUCache<string, number>;
  /** Cached matches of an address against allowFrom and trustedProxies. */
  readonly #addressChecks = new LRUCache<string, { isAllowed: boolean; isProxy: boolean }>({
    max: maxRemembered,
  });
  #options: ClientsOptions;
  #htpasswd: Htpasswd | undefined;
  /** Password checks running or queued, by client network. */
  readonly #pending = new Map<string, { readonly slots: Slots; count: number }>();
  #pendingTotal = 0;

  /** Throws if the htpasswd file is invalid. */
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

  /** Validates new options, to be applied or discarded. Throws if the htpasswd file is invalid. */
  prepare(options: ClientsOptions): { apply: () => void; discard: () => void } {
    const isSameFile = options.htpasswd === this.#options.htpasswd;
    const htpasswd = isSameFile ? this.#htpasswd : this.#open(options);
    return {
      apply: () => {
        if (!isSameFile) void this.#htpasswd?.close();
        this.#htpasswd = htpasswd;
        this.#options = options;
        this.#addressChecks.clear();
      },
      discard: () => {
        if (!isSameFile) void htpasswd?.close();
      },
    };
  }

  /** Counts the connections of a server. */
  watch(server: Server): void {
    const event = server instanceof TlsServer ? 'secureConnection' : 'connection';
    server.on(event, (socket: Socket) => this.#connected(socket));
  }

  /** Client address: of the connection, or from X-Forwarded-For of a trusted proxy. */
  addressOf(req: IncomingMessage): string {
    const peer = plainAddress(req.socket.remoteAddress ?? '');
    return this.#checkAddress(peer).isProxy ? this.#forwarded(req, peer) : peer;
  }

  /** Authenticates the client and counts its request. Throws `denied`, `unauthorized` or `client-limited`. */
  admit(req: IncomingMessage, res: ServerResponse, address: string): Client | Promise<Client> {
    const { socket } = req;
    if (!this.#checkAddress(address).isAllowed)
      throw new MirrorError('denied', `client ${address}: not in clients.allowFrom`);
    if (this.#excess.has(socket)) {
      res.shouldKeepAlive = false;
      throw this.#limits.tooManyConnections(address);
    }
    if (this.#options.maxConnections !== Infinity) this.#countForwarded(address, socket, res);
    this.#limits.request(address);
    if (!this.#htpasswd) return this.#client(address, this.#certificateName(socket));
    return this.#authenticate(this.#htpasswd, req.headers.authorization, address);
  }

  /** Checks the client's rules. `tag`: undefined for digests and lists. Throws `denied`. */
  authorize({ rules, address, user }: Client, repo: Repo, tag: string | undefined): void {
    if (permits(rules, repo, tag)) return;
    const who = user === undefined ? `client ${address}` : `user ${user}`;
    const what = tag === undefined ? repo.key : `${repo.key}:${tag}`;
    throw new MirrorError(
      'denied',
      `${what}: not allowed for ${who}; see "allow" and "deny" in the mirror's configuration`,
    );
  }

  async close(): Promise<void> {
    await this.#htpasswd?.close();
  }

  async #authenticate(htpasswd: Htpasswd, header: string | undefined, address: string): Promise<Client> {
    const login = parseBasic(header);
    if (!login) throw new MirrorError('unauthorized', 'this mirror requires a user name and password');
    const { user } = login;
    let isRight = await htpasswd.cached(user, login.password);
    isRight ??= await this.#checkPassword(htpasswd, login, address);
    if (!isRight) throw new MirrorError('unauthorized', 'wrong user name or password');
    return this.#client(address, user);
  }

  /** Queues checks per client, so that a password guesser delays only itself. Throws `client-limited`. */
  async #checkPassword(
    htpasswd: Htpasswd,
    { user, password }: { user: string; password: string },
    address: string,
  ): Promise<boolean> {
    const key = clientNetwork(address);
    const queue = this.#pending.get(key) ?? { slots: new Slots(checksPerClient), count: 0 };
    const tooMany = (retryAfterMs: number): MirrorError =>
      new MirrorError('client-limited', `client ${address}: too many password checks`, { retryAfterMs });
    if (queue.count >= maxPendingPerClient || this.#pendingTotal >= maxPending) throw tooMany(busyForMs);
    this.#pending.set(key, queue);
    queue.count += 1;
    this.#pendingTotal += 1;
    const release = await queue.slots.take(AbortSignal.timeout(maxQueueMs)).catch(() => undefined);
    try {
      if (!release) throw tooMany(busyForMs);
      const cached = await htpasswd.cached(user, password);
      if (cached !== undefined) return cached;
      const failures = this.#failures.get(key) ?? 0;
      if (failures >= maxFailures) throw tooMany(failuresForMs);
      const isRight = await htpasswd.check(user, password);
      if (!isRight) this.#failures.set(key, (this.#failures.get(key) ?? 0) + 1, { noUpdateTTL: true });
      return isRight;
    } finally {
      release?.();
      this.#pendingTotal -= 1;
      queue.count -= 1;
      if (queue.count === 0) this.#pending.delete(key);
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

  #checkAddress(address: string): { isAllowed: boolean; isProxy: boolean } {
    const cached = this.#addressChecks.get(address);
    if (cached) return cached;
    const { allowFrom, trustedProxies } = this.#options;
    const check = {
      isAllowed: allowFrom?.contains(address) ?? true,
      isProxy: trustedProxies?.contains(address) ?? false,
    };
    this.#addressChecks.set(address, check);
    return check;
  }

  /** The rightmost X-Forwarded-For address that is no trusted proxy: entries left of it may be forged. */
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
      // Garbage from a trusted proxy must not count as the proxy itself, which may be in allowFrom.
      if (isIP(next) === 0) return hop.trim() === '' ? address : 'unknown';
      address = next;
      if (!this.#checkAddress(next).isProxy) break;
    }
    return address;
  }

  /** Behind a proxy, concurrent requests are counted against maxConnections: the proxy owns the connections. */
  #countForwarded(address: string, socket: Socket, res: ServerResponse): void {
    if (!this.#checkAddress(plainAddress(socket.remoteAddress ?? '')).isProxy) return;
    const { excess, close } = this.#limits.connection(address);
    res.once('close', close);
    if (excess > 0) throw this.#limits.tooManyConnections(address);
  }

  #connected(socket: Socket): void {
    const { maxConnections } = this.#options;
    const peer = plainAddress(socket.remoteAddress ?? '');
    if (this.#checkAddress(peer).isProxy) return;
    const { excess, close } = this.#limits.connection(peer);
    socket.once('close', close);
    if (excess > maxConnections) socket.destroy();
    else if (excess > 0) this.#excess.add(socket);
  }

  #certificateName(socket: Socket): string | undefined {
    if (!(socket instanceof TLSSocket) || !socket.authorized) return undefined;
    const cached = this.#certificateNames.get(socket);
    if (cached) return cached.name;
    const { CN } = socket.getPeerCertificate().subject;
    const name = Array.isArray(CN) ? CN[0] : CN;
    this.#certificateNames.set(socket, { name });
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
