import { statSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
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
  /** With a connection of its own to the catalog. */
  readonly worker: WorkerThread;
  /** What the log may take while nothing can cut it, in bytes. */
  readonly mostBytes: () => number;
  readonly log: Logger;
}

/** A write-ahead log of this size is cut. */
const cutLogBytes = 4 * 1024 * 1024;
/** And one of this size at once. */
const longLogBytes = 16 * 1024 * 1024;

/** What waits for the log in memory, and can be done without, is at most so large. */
const mostWaitingBytes = 16 * 1024 * 1024;

/** The write-ahead log of the catalog: its checkpoints, and what keeps it short. */
export class CatalogLog {
  readonly #parts: CatalogLogParts;
  readonly #file: string;
  readonly #walFile: string;
  #cutting: Promise<void> | undefined;
  /** What reads the whole catalog: the log cannot be cut before that is over. */
  readonly #reading = new Set<Promise<unknown>>();
  /** Resolves when all that waited for the log has been written. */
  #turn: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #waitingBytes = 0;
  /** Something was written since the last checkpoint. */
  isDirty = false;

  constructor(parts: CatalogLogParts) {
    this.#parts = parts;
    this.#file = catalogPath(parts.root);
    this.#walFile = walPath(parts.root);
  }

  /** Nothing is written to the catalog's file: it is damaged, or the disk takes nothing and a copy is used. */
  get isFrozen(): boolean {
    const { catalog, health } = this.#parts;
    return health.isOnCopy || catalog.connection.isDamaged;
  }

  /** What the log holds goes into the catalog; a log that has grown is cut, in a moment in which nothing is written. */
  async checkpoint(): Promise<void> {
    this.isDirty = false;
    if (this.isFrozen) return;
    const { catalog, worker, log } = this.#parts;
    try {
      // While much is written, only more would come meanwhile.
      if ((await sizeOf(this.#walFile)) < longLogBytes) await worker.call('checkpoint', { file: this.#file });
      if (this.#reading.size === 0 && (await sizeOf(this.#walFile)) >= cutLogBytes) await this.cut();
    } catch (error) {
      if (isCorrupt(error)) catalog.connection.damaged(error);
      else log.warn({ err: error }, 'the catalog could not be checkpointed');
    }
  }

  /** Throws what the database says. */
  async cut(): Promise<void> {
    const { catalog, worker } = this.#parts;
    await catalog.connection.queue.during(() => worker.call('truncate', { file: this.#file }));
  }

  /** `work` reads the whole catalog: the log is not cut before it is over. Returns `work`. */
  hold<T>(work: Promise<T>): Promise<T> {
    this.#reading.add(work);
    const done = (): void => void this.#reading.delete(work);
    work.then(done, done);
    return work;
  }

  /**
   * Does a write of many pages: at once while the log is short, else in turn and when it has been cut. With `prepare` it is done
   * in turn, after that. Resolves to what it returns.
   */
  write<T>(write: () => T, prepare?: () => Promise<void>): Promise<T> {
    const { queue } = this.#parts.catalog.connection;
    if (!prepare && this.#waiting === 0 && this.#lengthNow() < cutLogBytes) return queue.write(write);
    const work = async (): Promise<T> => {
      await prepare?.();
      await this.#untilShort();
      return await queue.write(write);
    };
    this.#waiting += 1;
    const done = this.#turn.then(work).finally(() => (this.#waiting -= 1));
    // Others are answered in between.
    this.#turn = done
      .catch(() => undefined)
      .then(() => nextTurn())
      .then(() => nextTurn());
    return done;
  }

  /** The same of what holds so many bytes in memory until it is written: undefined, and nothing is done, when too much waits. */
  writeIfRoom(bytes: number, write: () => void): Promise<void> | undefined {
    if (this.#waitingBytes + bytes > mostWaitingBytes) return undefined;
    this.#waitingBytes += bytes;
    return this.write(write).finally(() => (this.#waitingBytes -= bytes));
  }

  async #untilShort(): Promise<void> {
    await this.pace();
    while (this.#reading.size > 0 && this.#lengthNow() >= this.#parts.mostBytes()) {
      await Promise.allSettled(this.#reading);
      await this.pace();
    }
  }

  /** Between two looks it may grow by a hundred megabytes: so it is looked at before each write. */
  #lengthNow(): number {
    try {
      return statSync(this.#walFile, { throwIfNoEntry: false })?.size ?? 0;
    } catch {
      // The write will say what is wrong with the disk.
      return 0;
    }
  }

  /** Whoever writes much waits until a log that has grown is cut. */
  async pace(): Promise<void> {
    if ((await sizeOf(this.#walFile)) < cutLogBytes) return;
    this.#cutting ??= this.checkpoint().finally(() => (this.#cutting = undefined));
    await this.#cutting;
  }
}
