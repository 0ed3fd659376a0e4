import { setImmediate as nextTurn } from 'node:timers/promises';
import { errorCode } from '../../util/errors.ts';
import { stepMs } from '../../util/steps.ts';

const retryMs = 20;
/** More writes than arrive during a checkpoint. Beyond this limit the oldest waiting write is dropped. */
const maxWaiting = 20_000;

interface Waiting {
  /** Must be repeatable: a transaction that fails is retried. */
  readonly write: () => void;
  readonly onDone: () => void;
  readonly onError: (error: unknown) => void;
}

/**
 * Writes to the catalog, in order. While another connection holds the write lock, as during a checkpoint, they wait in
 * memory instead of blocking. Waiting writes are then done in batches, one transaction each.
 */
export class WriteQueue {
  readonly #onError: (error: unknown) => void;
  readonly #inOne: (work: () => void) => void;
  readonly #waiting: Waiting[] = [];
  /** Number of running calls of `pauseDuring`; they may overlap. */
  #pauses = 0;
  #isWriting = false;
  #isDraining = false;
  #timer: NodeJS.Timeout | undefined;

  /**
   * `onError`: called for each deferred write that failed or was dropped. `inOne`: runs its argument in one
   * transaction.
   */
  constructor(onError: (error: unknown) => void, inOne: (work: () => void) => void) {
    this.#onError = onError;
    this.#inOne = inOne;
  }

  /**
   * Writes now, or later if the catalog is locked. Throws errors of an immediate write, except that the catalog is
   * locked.
   */
  do(write: () => void): void {
    // A nested call: part of the current write.
    if (this.#isWriting) {
      write();
      return;
    }
    const waiting = { write, onDone: () => undefined, onError: this.#onError };
    if (this.isWaiting) {
      this.#defer(waiting);
      return;
    }
    try {
      write();
    } catch (error) {
      if (!isBusy(error)) throw error;
      this.#defer(waiting);
    }
  }

  /** As `do`, but resolves to the result. `write` may be called again if its transaction was rolled back. */
  write<T>(write: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      let value: { readonly of: T } | undefined;
      const waiting = {
        write: () => void (value = { of: write() }),
        onDone: () => value && resolve(value.of),
        onError: reject,
      };
      if (this.isWaiting) {
        this.#defer(waiting);
        return;
      }
      try {
        this.#do(waiting);
      } catch {
        this.#defer(waiting);
      }
    });
  }

  /** Whether a new write would have to wait. */
  get isWaiting(): boolean {
    return this.#pauses > 0 || this.#waiting.length > 0;
  }

  /** Holds back all writes while `work` runs. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    this.#pauses += 1;
    try {
      return await work();
    } finally {
      this.#pauses -= 1;
      this.#step();
      void this.#drain();
    }
  }

  /** Does all waiting writes, until the catalog is locked. */
  flush(): void {
    while (this.#step());
  }

  /** Does the waiting writes that can be done and drops the rest, unless the queue is paused. */
  giveUp(): void {
    if (this.#pauses > 0) return;
    this.flush();
    clearTimeout(this.#timer);
    const given = this.#waiting.splice(0);
    for (const { onError } of given) onError(new Error('the catalog stayed locked until the store closed'));
  }

  /** Writes in batches until nothing waits or the catalog is locked. */
  async #drain(): Promise<void> {
    if (this.#isDraining) return;
    this.#isDraining = true;
    do await nextTurn();
    while (this.#step());
    this.#isDraining = false;
  }

  /** Writes one batch. Returns whether more can be written now. */
  #step(): boolean {
    if (this.#pauses > 0 || this.#waiting.length === 0) return false;
    const until = performance.now() + stepMs;
    const done: Waiting[] = [];
    try {
      this.#isWriting = true;
      this.#inOne(() => {
        for (const each of this.#waiting) {
          each.write();
          done.push(each);
          if (performance.now() >= until) break;
        }
      });
    } catch (error) {
      this.#isWriting = false;
      if (isBusy(error)) {
        this.#retryLater();
        return false;
      }
      // One by one: a failing write must not fail the others.
      return this.#stepOneByOne(until);
    } finally {
      this.#isWriting = false;
    }
    this.#waiting.splice(0, done.length);
    for (const each of done) each.onDone();
    return this.#waiting.length > 0;
  }

  #stepOneByOne(until: number): boolean {
    for (let each = this.#waiting[0]; each; each = this.#waiting[0]) {
      try {
        this.#do(each);
      } catch {
        this.#retryLater();
        return false;
      }
      this.#waiting.shift();
      if (performance.now() >= until) break;
    }
    return this.#waiting.length > 0;
  }

  /** Throws only if the catalog is locked. */
  #do({ write, onDone, onError }: Waiting): void {
    try {
      this.#isWriting = true;
      write();
    } catch (error) {
      if (isBusy(error)) throw error;
      onError(error);
      return;
    } finally {
      this.#isWriting = false;
    }
    onDone();
  }

  #defer(waiting: Waiting): void {
    if (this.#waiting.length >= maxWaiting)
      this.#waiting.shift()?.onError(new Error('the catalog was locked for too long'));
    this.#waiting.push(waiting);
    if (this.#pauses === 0 && !this.#isDraining) this.#retryLater();
  }

  #retryLater(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      if (this.#step()) void this.#drain();
    }, retryMs).unref();
  }
}

function isBusy(error: unknown): boolean {
  return errorCode(error)?.startsWith('SQLITE_BUSY') === true;
}
