import { LRUCache } from 'lru-cache';
import { Agent, errors, type Dispatcher } from 'undici';
import type { Repo } from '../../oci/repo.ts';
import type { Ledger } from '../../telemetry/ledger.ts';
import type { Metrics, UpstreamKind } from '../../telemetry/metrics.ts';
import { trace } from '../../telemetry/trace.ts';
import type { Clock } from '../../util/clock.ts';
import { errorCode, MirrorError } from '../../util/errors.ts';
import { Slots } from '../../util/slots.ts';
import { Body } from './body.ts';
import type { Breakers, Outcome, ReportOutcome } from './breaker.ts';
import { headerOf, retryAfterOf, type Headers } from './headers.ts';
import type { NetworkPolicy } from './network-policy.ts';

export interface TransportOptions {
  connectTimeoutMs: number;
  /** Timeout from the request to the response headers. */
  headersTimeoutMs: number;
  /** Timeout without a byte of the body. */
  idleTimeoutMs: number;
  /** How many repos and hosts to remember. */
  maxRemembered: number;
  /** Parallel blob bodies for the store, and as many relayed past it: limits connections to each host. */
  maxConnections: number;
}

export interface TransportContext {
  readonly clock: Clock;
  readonly breakers: Breakers;
  readonly policy: NetworkPolicy;
  /** The mirror's name in `Via`. */
  readonly pseudonym: string;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
}

export interface Call {
  readonly method: 'GET' | 'HEAD' | 'POST';
  readonly url: URL;
  /** Form body of a POST. */
  readonly form?: string;
  /** The repo it serves; undefined for what serves all repos. */
  readonly repo: Repo | undefined;
  /** Sent though the circuit is open: resumed downloads pace their own retries. */
  readonly bypassesBreaker?: boolean;
  readonly kind: Exclude<UpstreamKind, 'redirect'>;
  /** After a redirect. */
  readonly redirected?: boolean;
  /** Operation and object, for error messages: `GET docker.io/library/alpine manifest latest`. */
  readonly what: string;
  readonly headers: Readonly<Record<string, string>>;
  /** The deadline of everything before the first byte of the response. */
  readonly signal: AbortSignal;
}

export interface Response {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Body;
}

const maxCallsPerHost = 32;
/** Limit for one repo, so that a repo whose calls hang leaves connections to the others. */
const maxCallsPerRepo = 8;
const userAgent = 'layercache';
const maxHeaderBytes = 64 * 1024;

/**
 * HTTP to one upstream and the hosts it redirects to: one request, one response, through the host's circuit breaker;
 * no redirects, no retries. Blob bodies have connections of their own, so that a HEAD never waits for layers.
 */
export class Transport {
  readonly #name: string;
  readonly #options: TransportOptions;
  readonly #context: TransportContext;
  readonly #calls: Agent;
  readonly #blobs: Agent;
  /**
   * Slots for parallel calls, by host and by repo. A call that waits here rather than for a connection fails at once
   * if the circuit opens.
   */
  readonly #callSlots: LRUCache<string, Slots>;

  constructor(name: string, options: TransportOptions, context: TransportContext) {
    this.#name = name;
    this.#options = options;
    this.#context = context;
    this.#callSlots = new LRUCache({ max: 2 * options.maxRemembered });
    const agent = (connections: number): Agent =>
      new Agent({
        connect: context.policy.connector(options.connectTimeoutMs),
        connections,
        allowH2: false,
        pipelining: 1,
        maxHeaderSize: maxHeaderBytes,
        keepAliveTimeout: 15_000,
      });
    this.#calls = agent(maxCallsPerHost);
    this.#blobs = agent(2 * options.maxConnections);
  }

  /**
   * Throws `upstream-down`, `upstream-timeout`, `upstream-limited`, `upstream-busy`, `upstream-invalid` or
   * `address-refused`.
   */
  async send(call: Call): Promise<Response> {
    if (call.signal.aborted) throw toFault(call.what, call.signal.reason, call.signal);
    const done = isBlobBody(call) ? undefined : await this.#takeSlot(call);
    try {
      const report = await this.#admit(call);
      return await this.#send(call, report);
    } finally {
      done?.();
    }
  }

  async #admit({ url, what, bypassesBreaker = false }: Call): Promise<ReportOutcome> {
    const { breakers, metrics } = this.#context;
    try {
      return await breakers.of(url).admit(what, bypassesBreaker);
    } catch (error) {
      metrics.admissionsRefused.add(1, this.#name, (error as MirrorError).fault);
      throw error;
    }
  }

  async #send(call: Call, report: ReportOutcome): Promise<Response> {
    const traced = trace.getStore();
    if (traced) traced.upstreamCalls += 1;
    const { clock, metrics, ledger } = this.#context;
    let status = 'error';
    let outcome: Outcome = 'unknown';
    try {
      const response = await this.#dispatch(call);
      status = String(response.status);
      outcome = outcomeOf(call, response, clock.now());
      const entry = ledger.of(this.#name, call.repo?.name ?? '');
      if (call.kind === 'token') entry.tokenCalls += 1;
      if (response.status === 429) entry.limited += 1;
      if (response.status === 200 && isPull(call)) entry.upstreamPulls += 1;
      return response;
    } catch (cause) {
      const fault = toFault(`${call.what}: ${call.url.host}`, cause, call.signal);
      outcome = failureOf(fault, cause, call.signal);
      throw fault;
    } finally {
      report(outcome);
      metrics.upstreamRequests.add(1, this.#name, call.redirected ? 'redirect' : call.kind, status);
    }
  }

  /** Takes a slot for a call to this host. Throws `upstream-busy`. */
  async #takeSlot({ url, repo, what, signal }: Call): Promise<() => void> {
    const slots: (() => void)[] = [];
    const done = (): void => {
      for (const release of slots) release();
    };
    try {
      if (repo) slots.push(await this.#slots(`${url.origin} ${repo.key}`, maxCallsPerRepo).take(signal));
      slots.push(await this.#slots(url.origin, maxCallsPerHost).take(signal));
      return done;
    } catch (cause) {
      done();
      throw new MirrorError('upstream-busy', `${what}: too many calls waiting for ${url.host}`, {
        cause,
        retryAfterMs: 5000,
        notAsked: true,
      });
    }
  }

  #slots(key: string, count: number): Slots {
    const known = this.#callSlots.get(key) ?? new Slots(count);
    this.#callSlots.set(key, known);
    return known;
  }

  async close(): Promise<void> {
    await Promise.all([this.#calls.destroy(), this.#blobs.destroy()]);
  }

  #dispatch(call: Call): Promise<Response> {
    const { method, url, kind, form, headers, signal } = call;
    signal.throwIfAborted();
    const agent = isBlobBody(call) ? this.#blobs : this.#calls;
    return new Promise((resolve, reject) => {
      let controller: Dispatcher.DispatchController | undefined;
      let body: Body | undefined;
      let isContent = false;
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
          ...(form !== undefined && { body: form }),
          headers: { ...headers, via: this.#via(), 'user-agent': userAgent, 'accept-encoding': 'identity' },
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
            isContent = (status === 200 || status === 206) && (kind === 'blob' || kind === 'manifest');
            signal.removeEventListener('abort', abort);
            const length = method === 'HEAD' ? 0 : Number(headerOf(responseHeaders, 'content-length') ?? NaN);
            body = new Body(started, Number.isNaN(length) ? undefined : length);
            resolve({ status, headers: responseHeaders, body });
          },
          onResponseData: (_, chunk) => {
            if (isContent) this.#count(call, chunk.length);
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

  /** Sent with every request, since registries, redirects and realms may all lead back to this mirror. */
  #via(): string {
    const mirrors = [...(trace.getStore()?.mirrors ?? []), this.#context.pseudonym];
    return mirrors.map((each) => `1.1 ${each}`).join(', ');
  }

  #count({ kind, repo }: Call, bytes: number): void {
    const { metrics, ledger } = this.#context;
    metrics.upstreamBytes.add(bytes, this.#name);
    metrics.proxyPulledBytes.add(bytes, kind === 'manifest' ? 'manifest' : 'blob');
    ledger.of(this.#name, repo?.name ?? '').fetchedBytes += bytes;
  }
}

/** A blob body, which may take hours. */
function isBlobBody({ kind, method }: Call): boolean {
  return kind === 'blob' && method === 'GET';
}

/** Whether a call counts against the pull limit: only GET of a manifest does. */
export function isPull({ kind, method }: Pick<Call, 'kind' | 'method'>): boolean {
  return kind === 'manifest' && method === 'GET';
}

/**
 * Whether a 429 is the pull limit: a response to GET of a manifest, in the registry's JSON. Plain text, or a 429 to an
 * uncounted call, limits all requests.
 */
export function isPullLimit(call: Pick<Call, 'kind' | 'method'>, { status, headers }: Response): boolean {
  return (
    status === 429 &&
    isPull(call) &&
    /^application\/(.+\+)?json\b/i.test(headerOf(headers, 'content-type') ?? '')
  );
}

function outcomeOf(call: Call, response: Response, now: number): Outcome {
  const { status, headers } = response;
  if (status === 429 && !isPullLimit(call, response)) {
    return { retryAfterMs: retryAfterOf(headers, now) };
  }
  // 501: method not supported; 508: the mirror's own loop detection.
  if (status < 500 || status === 501 || status === 508) return 'answered';
  // A registry may fail for one image only; a failing token server or ping affects all.
  return call.kind === 'token' || call.kind === 'ping' ? 'failed' : 'server-error';
}

function failureOf({ fault }: MirrorError, cause: unknown, signal: AbortSignal): Outcome {
  if (fault === 'address-refused') return 'unknown';
  if (signal.aborted && cause === signal.reason) {
    return (cause as Error).name === 'TimeoutError' ? 'late' : 'unknown';
  }
  const isSilence = fault === 'upstream-timeout' || errorCode(cause) === 'UND_ERR_CONNECT_TIMEOUT';
  return isSilence ? 'silent' : 'failed';
}

/** Appends an API path to the base URL, whose own path stays before `/v2/`. */
export function urlBelow(base: URL, path: string): URL {
  return new URL(base.pathname.replace(/\/$/, '') + path, base);
}

/** The fault of an unexpected status. `now` in ms since the epoch. */
export function statusFault({ status, headers }: Response, message: string, now: number): MirrorError {
  if (status === 429) {
    const retryAfterMs = retryAfterOf(headers, now) ?? 1000;
    return new MirrorError('upstream-limited', `${message}: rate limit reached`, { retryAfterMs });
  }
  if (status === 508)
    return new MirrorError(
      'loop',
      `${message}: the request loops back to this mirror; check the upstream's url`,
    );
  return new MirrorError(status >= 500 ? 'upstream-down' : 'upstream-invalid', message);
}

/** The fault for an error of undici, the network or the deadline. */
export function toFault(what: string, cause: unknown, deadline?: AbortSignal): MirrorError {
  if (cause instanceof MirrorError) return cause;
  if (deadline?.aborted) return new MirrorError('upstream-timeout', `${what}: deadline exceeded`, { cause });
  if (cause instanceof errors.HeadersTimeoutError || cause instanceof errors.BodyTimeoutError) {
    return new MirrorError('upstream-timeout', `${what}: timed out`, { cause });
  }
  if (cause instanceof errors.HTTPParserError || cause instanceof errors.HeadersOverflowError) {
    return new MirrorError('upstream-invalid', `${what}: invalid HTTP response`, { cause });
  }
  return new MirrorError('upstream-down', `${what}: no connection (${errorCode(cause) ?? 'unknown'})`, {
    cause,
  });
}

/** Reads a body; undefined if it is longer than `limit` bytes. Throws the upstream's fault if the body breaks off. */
export function readAtMost(
  { what, signal }: Pick<Call, 'what' | 'signal'>,
  body: Body,
  limit: number,
): Promise<Buffer | undefined> {
  return body.bytes(limit, signal).catch((cause: unknown) => {
    throw toFault(what, cause, signal);
  });
}
