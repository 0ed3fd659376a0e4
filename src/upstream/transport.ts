import { Agent, errors, type Dispatcher } from 'undici';
import { errorCode, MirrorError } from '../util/errors.ts';
import type { Metrics, UpstreamKind } from '../util/metrics.ts';
import { trace } from '../util/trace.ts';
import { Body } from './body.ts';
import type { NetworkPolicy } from './network-policy.ts';
import { parseRetryAfter } from './retry-after.ts';

export interface TransportOptions {
  connectTimeoutMs: number;
  /** From request to the headers of the answer. */
  headersTimeoutMs: number;
  /** Without a byte of the body. */
  idleTimeoutMs: number;
  /** Bodies of blobs at once for the store, and as many past it: so connections to each host that has them. */
  maxConnections: number;
}

export interface Call {
  readonly method: 'GET' | 'HEAD';
  readonly url: URL;
  readonly kind: Exclude<UpstreamKind, 'redirect'>;
  /** The upstream has sent us here from elsewhere. */
  readonly redirected?: boolean;
  /** What is being done to what: `GET docker.io/library/alpine manifest latest`. */
  readonly what: string;
  readonly headers: Readonly<Record<string, string>>;
  /** The deadline over everything before the first byte of the answer. */
  readonly signal: AbortSignal;
}

export interface Response {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Body;
}

type Headers = Readonly<Record<string, string | string[] | undefined>>;

const callConnections = 16;
const userAgent = 'layercache';
const maxHeaderBytes = 64 * 1024;

/**
 * HTTP to one upstream and the hosts that it redirects to: one request, one answer; neither redirects nor retries.
 * Calls and blobs have connections of their own, so that a HEAD never waits behind layers.
 */
export class Transport {
  readonly #registry: string;
  readonly #options: TransportOptions;
  readonly #metrics: Metrics;
  readonly #calls: Agent;
  readonly #blobs: Agent;

  constructor(registry: string, options: TransportOptions, policy: NetworkPolicy, metrics: Metrics) {
    this.#registry = registry;
    this.#options = options;
    this.#metrics = metrics;
    const agent = (connections: number): Agent =>
      new Agent({
        connect: policy.connector(options.connectTimeoutMs),
        connections,
        allowH2: false,
        pipelining: 1,
        maxHeaderSize: maxHeaderBytes,
        keepAliveTimeout: 15_000,
      });
    this.#calls = agent(callConnections);
    this.#blobs = agent(2 * options.maxConnections);
  }

  /** Throws `upstream-down`, `upstream-timeout`, `upstream-invalid` or `address-refused`. */
  async send(call: Call): Promise<Response> {
    const spent = trace.getStore();
    if (spent) spent.upstreamCalls += 1;
    let status = 'error';
    try {
      const response = await this.#dispatch(call);
      status = String(response.status);
      return response;
    } catch (error) {
      throw toFault(`${call.what}: ${call.url.host}`, error, call.signal);
    } finally {
      this.#metrics.upstreamRequests.add(1, this.#registry, call.redirected ? 'redirect' : call.kind, status);
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.#calls.destroy(), this.#blobs.destroy()]);
  }

  #dispatch({ method, url, kind, headers, signal }: Call): Promise<Response> {
    signal.throwIfAborted();
    const agent = kind === 'blob' && method === 'GET' ? this.#blobs : this.#calls;
    return new Promise((resolve, reject) => {
      let controller: Dispatcher.DispatchController | undefined;
      let body: Body | undefined;
      const abort = (): void => {
        const reason = signal.reason as Error;
        controller?.abort(reason);
        reject(reason);
      };
      signal.addEventListener('abort', abort, { once: true });
      agent.dispatch(
        {
          origin: url.origin,
          path: url.pathname + url.search,
          method,
          headers: { ...headers, 'user-agent': userAgent, 'accept-encoding': 'identity' },
          headersTimeout: this.#options.headersTimeoutMs,
          bodyTimeout: this.#options.idleTimeoutMs,
        },
        {
          onRequestStart: (started) => {
            controller = started;
            if (signal.aborted) controller.abort(signal.reason as Error);
          },
          onResponseStart: (started, status, responseHeaders) => {
            if (status < 200) return;
            signal.removeEventListener('abort', abort);
            const length = method === 'HEAD' ? 0 : Number(one(responseHeaders, 'content-length') ?? NaN);
            body = new Body(started, Number.isNaN(length) ? undefined : length);
            resolve({ status, headers: responseHeaders, body });
          },
          onResponseData: (_, chunk) => {
            if (kind === 'blob' || kind === 'manifest') this.#count(kind, chunk.length);
            body?.received(chunk);
          },
          onResponseEnd: () => body?.end(),
          onResponseError: (_, error) => {
            signal.removeEventListener('abort', abort);
            if (body) body.end(error);
            else reject(error);
          },
        },
      );
    });
  }

  #count(kind: 'blob' | 'manifest', bytes: number): void {
    this.#metrics.upstreamBytes.add(bytes, this.#registry);
    this.#metrics.proxyPulledBytes.add(bytes, kind);
  }
}

/** A header that must not come twice; the first counts. */
export function one(headers: Headers, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/** The fault behind a status that is no answer and no plain no. `now` in ms since the epoch. */
export function statusFault({ status, headers }: Response, message: string, now: number): MirrorError {
  if (status === 429) {
    const retryAfterMs = parseRetryAfter(one(headers, 'retry-after'), now);
    return new MirrorError('upstream-limited', `${message}: its rate limit is reached`, { retryAfterMs });
  }
  return new MirrorError(status >= 500 ? 'upstream-down' : 'upstream-invalid', message);
}

/** The fault behind what undici, the network or the deadline reports about `what`. */
export function toFault(what: string, cause: unknown, deadline?: AbortSignal): MirrorError {
  if (cause instanceof MirrorError) return cause;
  if (deadline?.aborted) return new MirrorError('upstream-timeout', `${what}: no answer in time`, { cause });
  if (cause instanceof errors.HeadersTimeoutError || cause instanceof errors.BodyTimeoutError) {
    return new MirrorError('upstream-timeout', `${what}: the other side kept silent`, { cause });
  }
  if (cause instanceof errors.HTTPParserError || cause instanceof errors.HeadersOverflowError) {
    return new MirrorError('upstream-invalid', `${what}: the other side does not speak HTTP`, { cause });
  }
  return new MirrorError('upstream-down', `${what}: no connection (${errorCode(cause) ?? 'unknown'})`, {
    cause,
  });
}
