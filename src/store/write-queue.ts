import { errorCode } from '../util/errors.ts';

const retryMs = 20;
/** More than comes in the time that a checkpoint takes; what another program has locked for longer is lost. */
const maxWaiting = 20_000;

/**
 * Writes to the catalog in their order. While another connection has the write lock, as the one that cuts the write-ahead log
 * short, they wait in memory: nothing blocks, and none is lost.
 */
export class WriteQueue {
  readonly #onError: (error: unknown) => void;
  readonly #waiting: (() => void)[] = [];
  readonly #wake = new Set<() => void>();
  /** How many works go on in which nothing is written: they may overlap. */
  #pauses = 0;
  #timer: NodeJS.Timeout | undefined;

  /** `onError` is told why a write that had to wait could not be done in the end. */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** Does it now, or as soon as that can be. Throws what it throws now, but that the catalog is locked. */
  do(write: () => void): void {
    if (this.isPaused || this.#waiting.length > 0) {
      this.#defer(write);
      return;
    }
    try {
      write();
    } catch (error) {
      if (!isBusy(error)) throw error;
      this.#defer(write);
    }
  }

  /** Resolves when writes are done at once: to be followed by one in the same tick. */
  async ready(): Promise<void> {
    while (this.isPaused) await new Promise<void>((resolve) => this.#wake.add(resolve));
  }

  get isPaused(): boolean {
    return this.#pauses > 0;
  }

  /** Nothing is written while `work` goes on. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.#pauses += 1;
    try {
      return await work();
    } finally {
      this.#pauses -= 1;
      this.flush();
      for (const wake of this.#wake) wake();
      this.#wake.clear();
    }
  }

  /** Does what waits, as far as that can be. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.isPaused) return;
    for (let write = this.#waiting[0]; write; write = this.#waiting[0]) {
      try {
        write();
      } catch (error) {
        if (isBusy(error)) {
          this.#retryLater();
          return;
        }
        this.#onError(error);
      }
      this.#waiting.shift();
    }
  }

  #defer(write: () => void): void {
    if (this.#waiting.length >= maxWaiting) {
      this.#waiting.shift();
      this.#onError(new Error('the catalog was locked for too long'));
    }
    this.#waiting.push(write);
    if (!this.isPaused) this.#retryLater();
  }

  #retryLater(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.flush();
    }, retryMs).unref();
  }
}

function isBusy(error: unknown): boolean {
  return errorCode(error)?.startsWith('SQLITE_BUSY') === true;
}
