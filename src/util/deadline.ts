/** A time limit shared by all steps of a request. Cheap to create: a timer runs only while something is awaited. */
export class Deadline {
  /** `performance.now()` at which it expires. */
  protected at: number;
  #signal: AbortSignal | undefined;

  constructor(ms: number) {
    this.at = performance.now() + ms;
  }

  /** Remaining milliseconds, 0 after expiry. */
  get left(): number {
    return Math.max(0, Math.ceil(this.at - performance.now()));
  }

  get isOver(): boolean {
    return performance.now() >= this.at;
  }

  /** This deadline, extended to at least `ms` from now. */
  atLeast(ms: number): Deadline {
    return ms < this.left ? this : new Deadline(ms);
  }

  /**
   * Awaits `work` until the deadline, then rejects with `late()`; the work itself continues. Uses a plain timer: an
   * AbortSignal costs six times as much.
   */
  before<T>(work: Promise<T>, late: () => unknown): Promise<T> {
    return unlessLate(work, late, (leave) => {
      const timer = setTimeout(leave, this.left).unref();
      return () => clearTimeout(timer);
    });
  }

  /** Aborts with a `TimeoutError` at the deadline. */
  get signal(): AbortSignal {
    this.#signal ??= AbortSignal.timeout(this.left);
    return this.#signal;
  }
}

/** The deadline of shared work: the latest of its callers' deadlines. */
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

  /** Adds a caller, which may extend the deadline. */
  join(deadline: Deadline): void {
    this.at = Math.max(this.at, performance.now() + deadline.left);
  }

  /** Stops the timer when the work has ended. */
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

/** Awaits `work` until the signal aborts, then rejects with `late()`; the work itself continues. */
export function untilAborted<T>(work: Promise<T>, signal: AbortSignal, late: () => unknown): Promise<T> {
  return unlessLate(work, late, (leave) => {
    if (signal.aborted) leave();
    signal.addEventListener('abort', leave, { once: true });
    return () => signal.removeEventListener('abort', leave);
  });
}

/** `watch` arranges a call of `leave` when it is too late, and returns a function that cancels it. */
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
