import { AsyncLocalStorage } from 'node:async_hooks';

/** Upstream cost of a client's request, including shared work (a fill) that it started. */
export interface Trace {
  upstreamCalls: number;
  /** Pseudonyms from the request's Via, passed on to upstreams to detect loops. */
  readonly mirrors: readonly string[];
}

/** Follows the async context, so that it need not be a parameter everywhere. */
export const trace = new AsyncLocalStorage<Trace>();
