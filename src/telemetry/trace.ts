import { AsyncLocalStorage } from 'node:async_hooks';

/** What a client's request has cost so far. Work that it starts for others too (a fill) is booked on it. */
export interface Trace {
  upstreamCalls: number;
  /** The mirrors that it has come through: told to upstreams, so that a ring of mirrors is seen. */
  readonly mirrors: readonly string[];
}

/** Carried along every await, so that no signature on the way has to name it. */
export const trace = new AsyncLocalStorage<Trace>();
