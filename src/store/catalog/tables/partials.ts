import type { Digest } from '../../../oci/digest.ts';
import type { Connection } from '../connection.ts';
import type { WriteQueue } from '../write-queue.ts';

/** A partly fetched blob. */
export interface PartialRow {
  readonly registry: string;
  readonly digest: Digest;
  /** File name in the ingest directory. */
  readonly file: string;
  readonly size: number;
  /** Byte intervals that the file contains. */
  readonly present: string;
  /** Byte intervals that survive a power cut. */
  readonly synced: string;
  /** Boot id of the kernel whose page cache has the unsynced bytes. */
  readonly boot: string;
  /** Milliseconds since the epoch. */
  readonly updatedAt: number;
}

/** Journal of unfinished ingests: one row for each registry and digest. */
export class PartialTable {
  readonly #queue: WriteQueue;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#queue = connection.queue;
    this.#statements = statementsOf(connection);
  }

  all(): PartialRow[] {
    return this.#statements.all.all();
  }

  set({ registry, digest, file, size, present, synced, boot, updatedAt }: PartialRow): void {
    this.#queue.do(() => {
      this.#statements.set.run(registry, digest, file, size, present, synced, boot, updatedAt);
    });
  }

  remove(registry: string, digest: Digest): void {
    this.#queue.do(() => {
      this.#statements.remove.run(registry, digest);
    });
  }
}

function statementsOf(connection: Connection) {
  return {
    all: connection.prepare<[], PartialRow>(
      'SELECT registry, digest, file, size, present, synced, boot, updated_at AS updatedAt FROM ingests',
    ),
    set: connection.prepare('INSERT OR REPLACE INTO ingests VALUES (?, ?, ?, ?, ?, ?, ?, ?)'),
    remove: connection.prepare<[string, Digest]>('DELETE FROM ingests WHERE registry = ? AND digest = ?'),
  };
}
