import { statSync } from 'node:fs';
import { setImmediate as yieldToEventLoop } from 'node:timers/promises';
import type { Logger } from '../../telemetry/log.ts';
import type { WorkerThread } from '../../util/worker.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { isCorrupt } from '../catalog/damage.ts';
import { sizeOf } from '../disk/files.ts';
import type { Health } from '../disk/health.ts';
import { catalogPath, walPath } from '../disk/layout.ts';

export interface CatalogLogParts {
  /** The data directory. */
  readonly root: string;
  readonly catalog: Catalog;
  readonly health: Health;
  /** With its own connection to the catalog. */
  readonly worker: WorkerThread;
  /** Limit for the log while it cannot be truncated, in bytes. */
  readonly maxBytes: () => number;
  readonly log: Logger;
}

/** A write-ahead log of this size is truncated. */
const longLogBytes = 4 * 1024 * 1024;
/** A log of this size is truncated without a passive checkpoint first. */
const veryLongLogBytes = 16 * 1024 * 1024;

/** Limit for memory held by optional writes that wait for the log. */
const maxWaitingBytes = 16 * 1024 * 1024;

/** The catalog's write-ahead log: checkpoints, and backpressure that keeps it short. */
export class CatalogLog {
  readonly #parts: CatalogLogParts;
  readonly #file: string;
  readonly #walFile: string;
  #truncating: Promise<void> | undefined;
  /** Work that reads the whole catalog: the log cannot be truncated before it ends. */
  readonly #reading = new Set<Promise<unknown>>();
  /** Serializes the writes that wait for the log. */
  #tail: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #waitingBytes = 0;
  /** Something was written since the last checkpoint. */
  isDirty = false;

  constructor(parts: CatalogLogParts) {
    this.#parts = parts;
    this.#file = catalogPath(parts.root);
    this.#walFile = walPath(parts.root);
  }

  /** The catalog's file is not written: it is damaged, or replaced by a copy in memory. */
  get isFrozen(): boolean {
    const { catalog, health } = this.#parts;
    return health.isCatalogInMemory || catalog.connection.isDamaged;
  }

  /** Copies the log to the catalog, and truncates a long log while writes are paused. */
  async checkpoint(): Promise<void> {
    this.isDirty = false;
    if (this.isFrozen) return;
    const { catalog, worker, log } = this.#parts;
    try {
      // Under heavy writes the log would grow further during a passive checkpoint.
      if ((await sizeOf(this.#walFile)) < veryLongLogBytes)
        await worker.call('checkpoint', { file: this.#file });
      if (this.#reading.size === 0 && (await sizeOf(this.#walFile)) >= longLogBytes) await this.truncate();
    } catch (error) {
      if (isCorrupt(error)) catalog.connection.recordDamage(error);
      else log.warn({ err: error }, 'the catalog could not be checkpointed');
    }
  }

  /** Truncates the log. Throws SQLite errors. */
  async truncate(): Promise<void> {
    const { catalog, worker } = this.#parts;
    await catalog.connection.queue.pauseDuring(() => worker.call('truncate', { file: this.#file }));
  }

  /** Keeps the log from being truncated while `work` reads the whole catalog. Returns `work`. */
  deferTruncation<T>(work: Promise<T>): Promise<T> {
    this.#reading.add(work);
    const done = (): void => void this.#reading.delete(work);
    work.then(done, done);
    return work;
  }

  /**
   * For writes of many pages: at once while the log is short, else queued until it is truncated. With `prepare` always
   * queued, after `prepare`. Resolves to the result of `write`.
   */
  write<T>(write: () => T, prepare?: () => Promise<void>): Promise<T> {
    const { queue } = this.#parts.catalog.connection;
    if (!prepare && this.#waiting === 0 && this.#lengthNow() < longLogBytes) return queue.write(write);
    const work = async (): Promise<T> => {
      await prepare?.();
      await this.pace();
      return await queue.write(write);
    };
    this.#waiting += 1;
    const done = this.#tail.then(work).finally(() => (this.#waiting -= 1));
    // Yield to requests in between.
    this.#tail = done
      .catch(() => undefined)
      .then(() => yieldToEventLoop())
      .then(() => yieldToEventLoop());
    return done;
  }

  /** As `write`, for writes that hold `bytes` in memory. Returns undefined, without writing, if too much waits. */
  writeIfRoom(bytes: number, write: () => void): Promise<void> | undefined {
    if (this.#waitingBytes + bytes > maxWaitingBytes) return undefined;
    this.#waitingBytes += bytes;
    return this.write(write).finally(() => (this.#waitingBytes -= bytes));
  }

  /** Call before writing much: waits while a long log is truncated, or cannot be and has become too long. */
  async pace(): Promise<void> {
    await this.truncateIfLong();
    while (this.#reading.size > 0 && this.#lengthNow() >= this.#parts.maxBytes()) {
      await Promise.allSettled(this.#reading);
      await this.truncateIfLong();
    }
  }

  /** Read before each write: the log may grow by a hundred megabytes between two periodic checks. */
  #lengthNow(): number {
    try {
      return statSync(this.#walFile, { throwIfNoEntry: false })?.size ?? 0;
    } catch {
      // The write itself will fail.
      return 0;
    }
  }

  async truncateIfLong(): Promise<void> {
    if ((await sizeOf(this.#walFile)) < longLogBytes) return;
    this.#truncating ??= this.checkpoint().finally(() => (this.#truncating = undefined));
    await this.#truncating;
  }
}
