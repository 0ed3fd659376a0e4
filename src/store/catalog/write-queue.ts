import { setImmediate as nextTurn } from 'node:timers/promises';
import { errorCode } from '../../util/errors.ts';
import { stepMs } from '../../util/steps.ts';

const retryMs = 20;
/** More than comes in the time that a checkpoint takes; what another program has locked for longer is lost. */
const maxWaiting = 20_000;

interface Waiting {
  /** Done again from its beginning, if what it was written with could not be. */
  readonly write: () => void;
  readonly onDone: () => void;
  readonly onError: (error: unknown) => void;
}

/**
 * Writes to the catalog in their order. While another connection has the write lock, as the one that cuts the write-ahead log
 * short, they wait in memory: nothing blocks, and none is lost. What has waited is written some at a time, those in one
 * transaction.
 */
export class WriteQueue {
  readonly #onError: (error: unknown) => void;
  readonly #inOne: (work: () => void) => void;
  readonly #waiting: Waiting[] = [];
  /** How many works go on in which nothing is written: they may overlap. */
  #pauses = 0;
  #isWriting = false;
  #isDraining = false;
  #timer: NodeJS.Timeout | undefined;

  /**
   * `onError` is told why a write that had to wait could not be done in the end. `inOne` does all of its work in one
   * transaction, or nothing of it.
   */
  constructor(onError: (error: unknown) => void, inOne: (work: () => void) => void) {
    this.#onError = onError;
    this.#inOne = inOne;
  }

  /** Does it now, or as soon as that can be. Throws what it throws now, but that the catalog is locked. */
  do(write: () => void): void {
    // Part of a write that is being done.
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

  /** Does it now, or as soon as that can be; resolves to what it returns. It may be done twice, if the first time is undone. */
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

  /** Whether what is to be written now has to wait. */
  get isWaiting(): boolean {
    return this.#pauses > 0 || this.#waiting.length > 0;
  }

  /** Nothing is written while `work` goes on. */
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

  /** Does all that waits, as far as that can be. */
  flush(): void {
    while (this.#step());
  }

  /** Does what can be done, and gives the rest up, if it does not wait for work of our own. */
  giveUp(): void {
    if (this.#pauses > 0) return;
    this.flush();
    clearTimeout(this.#timer);
    const given = this.#waiting.splice(0);
    for (const { onError } of given) onError(new Error('the catalog was locked to the end'));
  }

  /** Until nothing waits, or it is locked. */
  async #drain(): Promise<void> {
    if (this.#isDraining) return;
    this.#isDraining = true;
    do await nextTurn();
    while (this.#step());
    this.#isDraining = false;
  }

  /** Returns whether there is more that can be done. */
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
      // Each for itself: what is wrong with one is not the others' matter.
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

  /** Throws when it is locked, and nothing else. */
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
