import { performance } from 'node:perf_hooks';

/** Time, injected so that tests can move it. */
export interface Clock {
  /** Milliseconds since the epoch, for persisted times. Jumps when the system clock is set. */
  now(): number;
  /** Milliseconds that never go back, for token lifetimes, deadlines and back-off. */
  monotonic(): number;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
};
