import { setImmediate as yieldToEventLoop } from 'node:timers/promises';
import { errorCode } from '../../util/errors.ts';
import { stepMs } from '../../util/steps.ts';

const retryMs = 20;
/** More writes than arrive during a checkpoint. Beyond this limit the oldest waiting write is dropped. */
const maxDeferred = 20_000;

interface Deferred {
  /** Must be repeatable: a transaction that fails is retried. */
  readonly write: () => void;
  readonly onDone: () => void;
  readonly onError: (error: unknown) => void;
}

/**
 * Writes to the catalog, in order. While another connection holds the write lock, as during a checkpoint, they wait in
 * memory instead of blocking. Deferred writes are then done in batches, one transaction each.
 */
export class WriteQueue {
  readonly #onError: (error: unknown) => void;
  readonly #inTransaction: (work: () => void) => void;
  readonly #deferred: Deferred[] = [];
  /** Number of running calls of `pauseDuring`; they may overlap. */
  #pauses = 0;
  #isWriting = false;
  #isDraining = false;
  #timer: NodeJS.Timeout | undefined;

  /**
   * `onError`: called for each deferred write that failed or was dropped. `inTransaction`: runs its argument in one
   * transaction.
   */
  constructor(onError: (error: unknown) => void, inTransaction: (work: () => void) => void) {
    this.#onError = onError;
    this.#inTransaction = inTransaction;
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
    const deferred = { write, onDone: () => undefined, onError: this.#onError };
    if (this.isWaiting) {
      this.#defer(deferred);
      return;
    }
    try {
      write();
    } catch (error) {
      if (!isBusy(error)) throw error;
      this.#defer(deferred);
    }
  }

  /** As `do`, but resolves to the result. `write` may be called again if its transaction was rolled back. */
  write<T>(write: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      let value: { readonly of: T } | undefined;
      const deferred = {
        write: () => void (value = { of: write() }),
        onDone: () => value && resolve(value.of),
        onError: reject,
      };
      if (this.isWaiting) {
        this.#defer(deferred);
        return;
      }
      try {
        this.#do(deferred);
      } catch {
        this.#defer(deferred);
      }
    });
  }

  /** Whether a new write would have to wait. */
  get isWaiting(): boolean {
    return this.#pauses > 0 || this.#deferred.length > 0;
  }

  /** Holds back all writes while `work` runs. */
  async pauseDuring<T>(work: () => Promise<T>): Promise<T> {
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
    const dropped = this.#deferred.splice(0);
    for (const { onError } of dropped) onError(new Error('the catalog stayed locked until the store closed'));
  }

  /** Writes in batches until nothing waits or the catalog is locked. */
  async #drain(): Promise<void> {
    if (this.#isDraining) return;
    this.#isDraining = true;
    do await yieldToEventLoop();
    while (this.#step());
    this.#isDraining = false;
  }

  /** Writes one batch. Returns whether more can be written now. */
  #step(): boolean {
    if (this.#pauses > 0 || this.#deferred.length === 0) return false;
    const until = performance.now() + stepMs;
    const done: Deferred[] = [];
    try {
      this.#isWriting = true;
      this.#inTransaction(() => {
        for (const each of this.#deferred) {
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
    this.#deferred.splice(0, done.length);
    for (const each of done) each.onDone();
    return this.#deferred.length > 0;
  }

  #stepOneByOne(until: number): boolean {
    for (let each = this.#deferred[0]; each; each = this.#deferred[0]) {
      try {
        this.#do(each);
      } catch {
        this.#retryLater();
        return false;
      }
      this.#deferred.shift();
      if (performance.now() >= until) break;
    }
    return this.#deferred.length > 0;
  }

  /** Throws only if the catalog is locked. */
  #do({ write, onDone, onError }: Deferred): void {
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

  #defer(deferred: Deferred): void {
    if (this.#deferred.length >= maxDeferred)
      this.#deferred.shift()?.onError(new Error('the catalog was locked for too long'));
    this.#deferred.push(deferred);
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
