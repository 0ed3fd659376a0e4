import { setImmediate as yieldToEventLoop } from 'node:timers/promises';

/** Longest synchronous work before the event loop gets a turn, ms. */
export const stepMs = 8;

/** Runs a generator, and lets the event loop run after every `stepMs` of work. */
export async function inSteps<T>(work: Iterator<unknown, T>): Promise<T> {
  for (;;) {
    const until = performance.now() + stepMs;
    do {
      const { done, value } = work.next();
      if (done) return value;
    } while (performance.now() < until);
    await yieldToEventLoop();
  }
}

/** Runs a generator to its end synchronously. */
export function atOnce<T>(work: Iterator<unknown, T>): T {
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
  }
}
