import { dirname } from 'node:path';
import type { Clock } from '../../util/clock.ts';
import type { WorkerThread } from '../../util/worker.ts';
import type { CatalogLog } from '../upkeep/catalog-log.ts';
import { Intervals } from './intervals.ts';
import type { Journalled } from './journal.ts';
import type { Partials } from './partials.ts';

export interface JournalWriterContext {
  readonly clock: Clock;
  readonly partials: Partials;
  /** Makes what is written down outlive a power cut. */
  readonly catalogLog: CatalogLog;
  /** Makes what has been written to a file last. */
  readonly worker: WorkerThread;
}

/** A file that is open. */
export interface OpenFile extends Journalled {
  readonly fd: number;
}

/** As much may be lost to a kill -9. */
const journalEveryBytes = 8 * 1024 * 1024;
/** As much time's worth may be lost to a power cut. */
const syncEveryMs = 1000;

/** Writes down what is in a growing file, every few MiB; about once a second it makes that outlive a power cut. */
export class JournalWriter {
  readonly #context: JournalWriterContext;
  #synced = new Intervals();
  #journalledBytes = 0;
  #syncedAt = 0;
  #syncing: Promise<void> | undefined;
  /** Nobody works on the file any more: it is not for this to write it down. */
  isOver = false;

  constructor(context: JournalWriterContext) {
    this.#context = context;
  }

  /** What is on the disk for good. */
  get synced(): Intervals {
    return this.#synced;
  }

  /** Goes on from what an earlier fill has left: so many bytes. */
  resume(synced: Intervals, bytes: number): void {
    this.#synced = synced;
    this.#journalledBytes = bytes;
    this.#syncedAt = this.#now();
  }

  begin(): void {
    this.#syncedAt ||= this.#now();
  }

  /** Nothing is in the file any more. */
  reset(): void {
    this.#synced = new Intervals();
    this.#journalledBytes = 0;
  }

  writeIfDue(file: OpenFile): void {
    if (file.present.total - this.#journalledBytes >= journalEveryBytes) this.write(file);
  }

  write(file: OpenFile): void {
    this.#journalledBytes = file.present.total;
    if (file.size === undefined) return;
    this.#context.partials.journal(file);
    if (!this.#syncing && this.#now() - this.#syncedAt >= syncEveryMs) {
      this.#syncing = this.#sync(file).finally(() => (this.#syncing = undefined));
    }
  }

  /** Resolves when the file is not used any more. */
  async ended(): Promise<void> {
    await this.#syncing;
  }

  async #sync(file: OpenFile): Promise<void> {
    const { partials, catalogLog, worker } = this.#context;
    const present = new Intervals(file.present.ranges);
    try {
      await worker.call('datasync', { fd: file.fd, directory: dirname(file.path) });
      this.#synced = present;
      if (this.isOver) return;
      partials.journal(file);
      await catalogLog.checkpoint();
    } catch {
      // Then less is sure to outlive a power cut.
    }
    this.#syncedAt = this.#now();
  }

  /** Milliseconds by the monotonic clock. */
  #now(): number {
    return this.#context.clock.monotonic();
  }
}
