/**
 * The time that something may take, shared by all its steps. One is made for every request, so its timer starts only when
 * something is waited for.
 */
export class Deadline {
  /** By `performance.now()`. */
  protected at: number;
  #signal: AbortSignal | undefined;

  constructor(ms: number) {
    this.at = performance.now() + ms;
  }

  /** Milliseconds, 0 when it is over. */
  get left(): number {
    return Math.max(0, Math.ceil(this.at - performance.now()));
  }

  get isOver(): boolean {
    return performance.now() >= this.at;
  }

  /** For a last step, which has so much time even if all of it was taken by the steps before. */
  atLeast(ms: number): Deadline {
    return ms < this.left ? this : new Deadline(ms);
  }

  /**
   * What is waited for, but no longer than that: then it rejects with `late()`. The work itself goes on. Nothing stays of it, as a
   * signal would, which costs six times as much.
   */
  before<T>(work: Promise<T>, late: () => unknown): Promise<T> {
    return unlessLate(work, late, (leave) => {
      const timer = setTimeout(leave, this.left).unref();
      return () => clearTimeout(timer);
    });
  }

  /** Aborts with a `TimeoutError` when the time is over. */
  get signal(): AbortSignal {
    this.#signal ??= AbortSignal.timeout(this.left);
    return this.#signal;
  }
}

/** The time of work that several wait for: it ends with the latest of their deadlines. */
export class SharedDeadline extends Deadline {
  readonly #late = new AbortController();
  #timer: NodeJS.Timeout | undefined;

  constructor(first: Deadline) {
    super(first.left);
  }

  override get signal(): AbortSignal {
    this.#watch();
    return this.#late.signal;
  }

  /** Somebody else waits for the work too. */
  join(deadline: Deadline): void {
    this.at = Math.max(this.at, performance.now() + deadline.left);
  }

  /** The work has ended. */
  end(): void {
    clearTimeout(this.#timer);
  }

  #watch(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      if (this.isOver) this.#late.abort(new DOMException('too late', 'TimeoutError'));
      else this.#watch();
    }, this.left).unref();
  }
}

/** What is waited for, but no longer than the signal lets: then it rejects with `late()`. The work itself goes on. */
export function orLate<T>(work: Promise<T>, signal: AbortSignal, late: () => unknown): Promise<T> {
  return unlessLate(work, late, (leave) => {
    if (signal.aborted) leave();
    signal.addEventListener('abort', leave, { once: true });
    return () => signal.removeEventListener('abort', leave);
  });
}

/** `watch` calls `leave` when it is too late, until what it returns is called. */
async function unlessLate<T>(
  work: Promise<T>,
  late: () => unknown,
  watch: (leave: () => void) => () => void,
): Promise<T> {
  const left = Promise.withResolvers<never>();
  const unwatch = watch(() => left.reject(late()));
  try {
    return await Promise.race([work, left.promise]);
  } finally {
    unwatch();
  }
}
