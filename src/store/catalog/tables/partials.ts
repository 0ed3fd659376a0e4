import type { Digest } from '../../../oci/digest.ts';
import type { Connection } from '../connection.ts';
import type { WriteQueue } from '../write-queue.ts';

/** A blob of which a part was fetched. */
export interface PartialRow {
  readonly registry: string;
  readonly digest: Digest;
  /** Its name in the directory of ingests. */
  readonly file: string;
  readonly size: number;
  /** Which intervals of it are in the file. */
  readonly present: string;
  /** Those of them that a power cut does not take. */
  readonly synced: string;
  /** The run of the kernel in whose page cache the rest is. */
  readonly boot: string;
  /** Milliseconds since the epoch. */
  readonly updatedAt: number;
}

/** The journal of unfinished ingests: one row for each blob and the registry that it comes from. */
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
