import ipaddr from 'ipaddr.js';
import { request, type IncomingMessage, type RequestOptions } from 'node:http';
import { request as requestOverTls } from 'node:https';
import { isIP, type Socket } from 'node:net';
import type { SecureContext } from 'node:tls';
import { MirrorError } from '../../util/errors.ts';
import { isNetwork, Networks } from '../../util/networks.ts';

export interface ProxyOptions {
  /** May hold user name and password. */
  readonly url: URL;
  /** As in `NO_PROXY`: hosts, domains with their subdomains, addresses and networks, with or without a port; or `*`. */
  readonly except: string;
  /** From the environment, which never means loopback to be proxied. */
  readonly isFromEnvironment: boolean;
}

export interface TunnelOptions {
  readonly timeoutMs: number;
  /** Resolves the proxy's own name. */
  readonly lookup: NonNullable<RequestOptions['lookup']>;
  /** CA certificates for an https proxy. */
  readonly secureContext: SecureContext | undefined;
}

/** An HTTP or HTTPS proxy that tunnels connections by CONNECT, so it sees only host names. */
export class Proxy {
  readonly #options: ProxyOptions;
  readonly #exceptions: readonly ((host: string, port: string) => boolean)[];

  constructor(options: ProxyOptions) {
    this.#options = options;
    this.#exceptions = options.except.split(/[\s,]+/).flatMap((text) => exceptionOf(text.toLowerCase()));
  }

  /** Without brackets. */
  get hostname(): string {
    return this.#options.url.hostname.replace(/^\[(.*)\]$/, '$1');
  }

  /** Whether connections to the host go through the proxy. */
  covers(host: string, port: string): boolean {
    const { isFromEnvironment } = this.#options;
    if (isFromEnvironment && (host === 'localhost' || isLoopback(host))) return false;
    return !this.#exceptions.some((matches) => matches(host, port));
  }

  /** Opens a tunnel. Throws `upstream-down` if the proxy fails or refuses. */
  tunnel(host: string, port: string, { timeoutMs, lookup, secureContext }: TunnelOptions): Promise<Socket> {
    const { url } = this.#options;
    const target = `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
    const login = [url.username, url.password].map(decodeURIComponent).join(':');
    const options: RequestOptions & { secureContext?: SecureContext; servername: string } = {
      host: this.hostname,
      port: url.port || (url.protocol === 'https:' ? 443 : 80),
      // By default Node would use the target's name.
      servername: isIP(this.hostname) === 0 ? this.hostname : '',
      method: 'CONNECT',
      path: target,
      agent: false,
      timeout: timeoutMs,
      lookup,
      ...(secureContext && { secureContext }),
      headers: {
        host: target,
        ...(url.username !== '' && {
          'proxy-authorization': `Basic ${Buffer.from(login).toString('base64')}`,
        }),
      },
    };
    const { promise, resolve, reject } = Promise.withResolvers<Socket>();
    const req = url.protocol === 'https:' ? requestOverTls(options) : request(options);
    const refuse = (why: string, cause?: unknown): void => {
      reject(new MirrorError('upstream-down', `${target}: the proxy ${url.host} ${why}`, { cause }));
      req.destroy();
    };
    req.on('timeout', () => refuse('timed out'));
    req.on('error', (cause) => {
      if (cause instanceof MirrorError) reject(cause);
      else refuse('is unreachable', cause);
    });
    req.on('response', ({ statusCode }: IncomingMessage) => refuse(`answered ${statusCode ?? 0}`));
    req.on('connect', ({ statusCode }: IncomingMessage, socket: Socket, head: Buffer) => {
      if (statusCode === undefined || statusCode < 200 || statusCode > 299) {
        socket.destroy();
        refuse(`answered ${statusCode ?? 0}`);
        return;
      }
      socket.setTimeout(0);
      if (head.length > 0) socket.unshift(head);
      resolve(socket);
    });
    req.end();
    return promise;
  }
}

function exceptionOf(text: string): ((host: string, port: string) => boolean)[] {
  if (text === '') return [];
  if (text === '*') return [() => true];
  const [, name = text, onlyPort] = /^(\[.*\]|[^:]*):(\d+)$/.exec(text) ?? [];
  const bare = name.replace(/^\[(.*)\]$/, '$1').replace(/^\*?\./, '');
  const isPort = (port: string): boolean => onlyPort === undefined || onlyPort === port;
  if (isNetwork(bare)) {
    const networks = new Networks([bare]);
    return [(host, port) => isPort(port) && networks.contains(host)];
  }
  return [(host, port) => isPort(port) && (host === bare || host.endsWith(`.${bare}`))];
}

function isLoopback(host: string): boolean {
  return ipaddr.isValid(host) && ipaddr.process(host).range() === 'loopback';
}
