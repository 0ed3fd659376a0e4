import ipaddr from 'ipaddr.js';
import { LRUCache } from 'lru-cache';
import { createHash } from 'node:crypto';
import { lookup as dnsLookup, type LookupAddress, type LookupOptions } from 'node:dns';
import { isIP, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { createSecureContext, getCACertificates, type SecureContext } from 'node:tls';
import { getDomain } from 'tldts';
import { buildConnector } from 'undici';
import { MirrorError } from '../../util/errors.ts';
import { Networks } from '../../util/networks.ts';
import { Proxy, type ProxyOptions } from './proxy.ts';

export interface NetworkPolicyOptions {
  /** The upstream's own URL. */
  url: URL;
  /** Allow private and loopback addresses, and any port, for this upstream. */
  allowPrivateNetwork: boolean;
  /** URL prefixes outside the upstream's domain to which its credentials may be sent. */
  realms: readonly string[];
  /** PEM: CA certificates trusted besides the system's. */
  ca?: string | undefined;
  /** PEM: client certificate, shown only to the upstream's own host. */
  cert?: string | undefined;
  key?: string | undefined;
  /** Skip certificate verification for the upstream's own host. */
  insecureSkipVerify?: boolean;
  proxy?: ProxyOptions | undefined;
  /** Whether a URL belongs to an upstream that is configured as private. */
  isPrivateUpstream?: (url: URL) => boolean;
}

type Reach = 'public' | 'private' | 'forbidden';

const lookupTtlMs = 30_000;
// Metadata and control services of clouds, outside the link-local range: AWS, Google, Alibaba, Azure.
const cloudServices = new Networks(['fd00:ec2::/32', 'fd20:ce::/64', '100.100.100.200', '168.63.129.16']);
/** Deprecated range: some systems treat these addresses as IPv4. */
const ipv4Compatible = new Networks(['::/96']);
const localNat64 = new Networks(['64:ff9b:1::/48']);
/** How long to wait for the local lookup of a host reached through a proxy. */
const proxiedLookupMs = 3000;
const failedLookupTtlMs = 30_000;

const privateRanges = new Set<string>(['private', 'uniqueLocal', 'loopback', 'carrierGradeNat']);

/** Classifies an address. IPv4 inside IPv6 (mapped, NAT64) counts as its IPv4 address. */
export function reachOf(address: string): Reach {
  if (!ipaddr.isValid(address)) return 'forbidden';
  let ip = ipaddr.process(address);
  if (ip instanceof ipaddr.IPv6 && ip.range() === 'rfc6052') {
    ip = new ipaddr.IPv4(ip.toByteArray().slice(12));
  }
  if (cloudServices.contains(ip.toString())) return 'forbidden';
  const range = ip.range();
  if (range === 'unicast' && ipv4Compatible.contains(address)) return 'forbidden';
  if (range === 'unicast') return localNat64.contains(address) ? 'private' : 'public';
  return privateRanges.has(range) ? 'private' : 'forbidden';
}

/** The port, explicit or default. */
export function portOf({
  protocol,
  port,
}: {
  readonly protocol: string;
  readonly port?: string | null;
}): string {
  return port || (protocol === 'https:' ? '443' : '80');
}

/** A host that can only be in a private network: a private address, `localhost`, or a name without a dot. */
function isPrivateHost(host: string): boolean {
  const bare = unbracket(host);
  if (isIP(bare)) return reachOf(bare) === 'private';
  return !bare.includes('.') || bare.endsWith('.localhost');
}

function unbracket(host: string): string {
  return host.replace(/^\[(.*)\]$/, '$1');
}

/**
 * Where an upstream may send the mirror: redirects and realms are untrusted. Addresses are checked when connecting, so
 * that DNS rebinding gains nothing. All methods throw `address-refused`.
 */
export class NetworkPolicy {
  readonly #options: NetworkPolicyOptions;
  readonly #privateAllowed: boolean;
  readonly #proxy: Proxy | undefined;
  readonly #unresolved = new LRUCache<string, true>({ max: 100, ttl: failedLookupTtlMs });
  readonly #addresses = new LRUCache<string, Promise<LookupAddress[]>>({ max: 100, ttl: lookupTtlMs });

  constructor(options: NetworkPolicyOptions) {
    this.#options = options;
    this.#privateAllowed = options.allowPrivateNetwork || isPrivateHost(options.url.hostname);
    this.#proxy = options.proxy && new Proxy(options.proxy);
    if (options.url.protocol === 'http:' && !this.#privateAllowed) {
      throw new MirrorError(
        'address-refused',
        `upstream ${options.url.origin}: plain http is for private and loopback hosts only; use https, or set allowPrivateNetwork`,
      );
    }
  }

  /** Checks a redirect's target. */
  checkRedirect(from: URL, to: URL): void {
    const what = `redirect from ${from.host} to ${to.protocol}//${to.host}`;
    this.#checkUrl(to, what);
    if (from.protocol === 'https:' && to.protocol !== 'https:') throw refused(`${what}: leaves https`);
    // A private upstream's content must not be served as another registry's.
    if (to.origin !== this.#options.url.origin && this.#options.isPrivateUpstream?.(to) === true)
      throw refused(`${what}: the target is a private upstream`);
  }

  /** Checks a token server, which gets credentials: it must belong to the upstream. */
  checkRealm(text: string): URL {
    const url = URL.parse(text);
    if (!url) throw refused(`realm ${JSON.stringify(text.slice(0, 200))}: not a URL`);
    const what = `realm ${url.protocol}//${url.host}${url.pathname}`;
    this.#checkUrl(url, what);
    if (url.protocol !== 'https:' && this.#options.url.protocol === 'https:')
      throw refused(`${what}: not https`);
    const { hostname } = this.#options.url;
    const domain = getDomain(hostname, { allowPrivateDomains: true });
    const covered =
      url.hostname === hostname ||
      (domain !== null && getDomain(url.hostname, { allowPrivateDomains: true }) === domain) ||
      this.#options.realms.some((realm) => isPrefix(realm, url));
    if (!covered)
      throw refused(`${what}: does not belong to ${hostname}; if it does, add it to the upstream's "realms"`);
    return url;
  }

  /** A connector that enforces this policy. */
  connector(timeoutMs: number): buildConnector.connector {
    const { url, ca, cert, key, insecureSkipVerify } = this.#options;
    const trust = ca === undefined ? {} : { ca: [...getCACertificates('default'), ca] };
    const identity = { ...(cert !== undefined && { cert }), ...(key !== undefined && { key }) };
    const common = {
      timeout: timeoutMs,
      allowH2: false,
      lookup: (hostname: string, options: LookupOptions, callback: LookupCallback) =>
        void this.#lookup(hostname, options, callback),
    };
    const trusted = ca === undefined ? undefined : contextOf(trust);
    const toOthers = buildConnector({ ...common, ...(trusted && { secureContext: trusted }) });
    const toOwn = buildConnector({
      ...common,
      ...(ca !== undefined || cert !== undefined
        ? { secureContext: contextOf({ ...trust, ...identity }) }
        : {}),
      ...(insecureSkipVerify === true && { rejectUnauthorized: false }),
    });
    return (options, callback) => {
      const connect = options.hostname === url.hostname ? toOwn : toOthers;
      const literal = unbracket(options.hostname);
      try {
        if (isIP(literal)) this.#checkAddress(literal, options.hostname);
      } catch (error) {
        callback(error as Error, null);
        return;
      }
      const port = portOf(options);
      if (this.#proxy?.covers(literal, port)) {
        this.#tunnel(this.#proxy, { host: literal, port }, timeoutMs, trusted).then(
          (socket) => {
            if (options.protocol === 'https:') connect({ ...options, httpSocket: socket }, callback);
            else callback(null, socket);
          },
          (error: unknown) => callback(error as Error, null),
        );
        return;
      }
      connect(options, (...[error, socket]) => {
        if (error) {
          callback(error, null);
          return;
        }
        try {
          this.#checkAddress(socket.remoteAddress ?? '', options.hostname);
          callback(null, socket);
        } catch (refusal) {
          socket.destroy();
          callback(refusal as Error, null);
        }
      });
    };
  }

  /**
   * The proxy resolves the name. If it can also be resolved here, its addresses are checked as for a direct
   * connection.
   */
  async #tunnel(
    proxy: Proxy,
    { host, port }: { host: string; port: string },
    timeoutMs: number,
    secureContext: SecureContext | undefined,
  ): Promise<Socket> {
    if (isIP(proxy.hostname) && reachOf(proxy.hostname) === 'forbidden')
      throw refused(`proxy ${proxy.hostname}: forbidden address`);
    if (!isIP(host)) {
      const timeout = sleep(proxiedLookupMs, [], { ref: false });
      const addresses = await Promise.race([this.#tryResolve(host), timeout]);
      // The proxy may choose any of them.
      for (const { address } of addresses) this.#checkAddress(address, host);
    }
    return proxy.tunnel(host, port, {
      timeoutMs,
      secureContext,
      // The operator's proxy may be in a private network.
      lookup: (hostname, options, callback) =>
        void this.#lookup(hostname, options, callback, (address) => reachOf(address) !== 'forbidden'),
    });
  }

  #checkUrl(url: URL, what: string): void {
    if (url.protocol !== 'https:' && url.protocol !== 'http:') throw refused(`${what}: not an http URL`);
    if (url.username !== '' || url.password !== '') throw refused(`${what}: carries credentials`);
    const port = Number(url.port);
    if (
      url.port !== '' &&
      ![80, 443, Number(this.#options.url.port)].includes(port) &&
      !this.#privateAllowed
    ) {
      throw refused(`${what}: port ${port} is not allowed`);
    }
    const host = unbracket(url.hostname);
    if (isIP(host)) this.#checkAddress(host, what);
  }

  #checkAddress(address: string, what: string): void {
    const reach = reachOf(address);
    if (reach === 'public' || (reach === 'private' && this.#privateAllowed)) return;
    const remedy = reach === 'private' ? '; to allow it, set allowPrivateNetwork for this upstream' : '';
    throw refused(`${what}: ${address} is not a public address${remedy}`);
  }

  async #lookup(
    hostname: string,
    options: LookupOptions,
    callback: LookupCallback,
    isAllowed = (address: string): boolean => this.#isAllowed(address),
  ): Promise<void> {
    try {
      const addresses = await this.#resolve(hostname);
      const allowed = addresses.filter(({ address }) => isAllowed(address));
      const [first] = allowed;
      if (!first) this.#checkAddress(addresses[0]?.address ?? '', hostname);
      if (options.all) callback(null, allowed);
      else callback(null, first?.address ?? '', first?.family);
    } catch (error) {
      callback(error as NodeJS.ErrnoException, []);
    }
  }

  #isAllowed(address: string): boolean {
    const reach = reachOf(address);
    return reach === 'public' || (reach === 'private' && this.#privateAllowed);
  }

  /** Empty if the name cannot be resolved here; not tried again for a while. */
  async #tryResolve(hostname: string): Promise<LookupAddress[]> {
    if (this.#unresolved.has(hostname)) return [];
    return this.#resolve(hostname).catch(() => {
      this.#unresolved.set(hostname, true);
      return [];
    });
  }

  #resolve(hostname: string): Promise<LookupAddress[]> {
    const cached = this.#addresses.get(hostname);
    if (cached) return cached;
    const addresses = new Promise<LookupAddress[]>((resolve, reject) => {
      dnsLookup(hostname, { all: true }, (error, found) => {
        if (error) reject(error);
        else resolve(found);
      });
    });
    this.#addresses.set(hostname, addresses);
    addresses.catch(() => this.#addresses.delete(hostname));
    return addresses;
  }
}

/** Shared by upstreams with the same certificates: CA certificates take a while to parse. */
const contexts = new LRUCache<string, SecureContext>({ max: 50 });

function contextOf(options: { ca?: string[]; cert?: string; key?: string }): SecureContext {
  const { ca = [], cert = '', key = '' } = options;
  const name = createHash('sha256')
    .update([ca.at(-1), cert, key].join('\n'))
    .digest('hex');
  const context = contexts.get(name) ?? createSecureContext(options);
  contexts.set(name, context);
  return context;
}

type LookupCallback = (
  error: NodeJS.ErrnoException | null,
  address: string | LookupAddress[],
  family?: number,
) => void;

function isPrefix(realm: string, url: URL): boolean {
  const prefix = URL.parse(realm);
  if (prefix?.origin !== url.origin) return false;
  const { pathname } = prefix;
  return url.pathname === pathname || url.pathname.startsWith(pathname.replace(/\/?$/, '/'));
}

function refused(message: string): MirrorError {
  return new MirrorError('address-refused', message);
}
