import { setImmediate as nextTurn } from 'node:timers/promises';

/** What may go on without others being answered in between, in milliseconds. */
export const stepMs = 8;

/** Does work that stands still at every `yield`: when it has gone on for some milliseconds, others are answered in between. */
export async function inSteps<T>(work: Iterator<unknown, T>): Promise<T> {
  for (;;) {
    const until = performance.now() + stepMs;
    do {
      const { done, value } = work.next();
      if (done) return value;
    } while (performance.now() < until);
    await nextTurn();
  }
}

/** Does it all at once. */
export function atOnce<T>(work: Iterator<unknown, T>): T {
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
  }
}
