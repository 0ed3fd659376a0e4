import { AsyncLocalStorage } from 'node:async_hooks';

/** What a client's request has cost so far. Work that it starts for others too (a fill) is booked on it. */
export interface Trace {
  upstreamCalls: number;
}

/** Carried along every await, so that no signature on the way has to name it. */
export const trace = new AsyncLocalStorage<Trace>();
