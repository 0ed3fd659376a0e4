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
  /** Its checkpoint makes journal rows survive a power cut. */
  readonly catalogLog: CatalogLog;
  /** Syncs files to disk. */
  readonly worker: WorkerThread;
}

/** A growing file, open. */
export interface OpenFile extends Journalled {
  readonly fd: number;
}

/** A kill -9 loses at most this many bytes. */
const journalEveryBytes = 8 * 1024 * 1024;
/** A power cut loses the bytes of about this time. */
const syncEveryMs = 1000;

/** Journals the intervals of a growing file every few MiB, and syncs file and journal about once a second. */
export class JournalWriter {
  readonly #context: JournalWriterContext;
  #synced = new Intervals();
  #journalledBytes = 0;
  #syncedAt = 0;
  #syncing: Promise<void> | undefined;
  /** The ingest has ended: its journal entry must not be written any more. */
  isOver = false;

  constructor(context: JournalWriterContext) {
    this.#context = context;
  }

  /** Intervals synced to disk. */
  get synced(): Intervals {
    return this.#synced;
  }

  /** Continues from the journal of an earlier ingest, with `bytes` present. */
  resume(synced: Intervals, bytes: number): void {
    this.#synced = synced;
    this.#journalledBytes = bytes;
    this.#syncedAt = this.#now();
  }

  begin(): void {
    this.#syncedAt ||= this.#now();
  }

  /** The file was emptied. */
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

  /** Resolves when no sync of the file is running. */
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
      // Fewer bytes survive a power cut.
    }
    this.#syncedAt = this.#now();
  }

  /** Milliseconds by the monotonic clock. */
  #now(): number {
    return this.#context.clock.monotonic();
  }
}
