import { performance } from 'node:perf_hooks';

/** Time, injected so that tests can move it. */
export interface Clock {
  /** Milliseconds since the epoch: for what is written down. Jumps when the machine's clock is set. */
  now(): number;
  /** Milliseconds that only ever go forward: for tokens, deadlines and back-off. */
  monotonic(): number;
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
};
