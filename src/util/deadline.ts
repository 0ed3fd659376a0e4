/**
 * The time that something may take, shared by all its steps. One is made for every request, so its timer starts only when
 * something is waited for.
 */
export class Deadline {
  readonly #at: number;
  #signal: AbortSignal | undefined;

  constructor(ms: number) {
    this.#at = performance.now() + ms;
  }

  get isOver(): boolean {
    return performance.now() >= this.#at;
  }

  /** Aborts when the time is over. */
  get signal(): AbortSignal {
    this.#signal ??= AbortSignal.timeout(Math.max(0, Math.ceil(this.#at - performance.now())));
    return this.#signal;
  }
}

/** What is waited for, but no longer than the signal lets: then it rejects with `late()`. The work itself goes on. */
export async function orLate<T>(work: Promise<T>, signal: AbortSignal, late: () => unknown): Promise<T> {
  const left = Promise.withResolvers<never>();
  const leave = (): void => left.reject(late());
  if (signal.aborted) leave();
  signal.addEventListener('abort', leave, { once: true });
  try {
    return await Promise.race([work, left.promise]);
  } finally {
    signal.removeEventListener('abort', leave);
  }
}
