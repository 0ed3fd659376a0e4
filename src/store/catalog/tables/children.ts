import type { Digest } from '../../../oci/digest.ts';
import type { Child } from '../../../oci/manifest.ts';
import type { Connection } from '../connection.ts';

/** Rows read or removed in one step, which blocks the event loop. */
const storedPerStep = 500;
const removedPerStep = 1000;

/** Children of stored manifests: configs, layers and manifests. */
export class ChildTable {
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#statements = statementsOf(connection);
  }

  /** All children in manifest order. */
  of(parent: Digest): Child[] {
    return this.#statements.of.all(parent).map((row) => ({ ...row, foreign: row.foreign === 1 }));
  }

  /** The stored children, in batches. */
  *stored(parent: Digest): Generator<Digest[], undefined> {
    let from = 0;
    do {
      const to = from + storedPerStep;
      yield this.#statements.stored.all(parent, from, to).map(({ digest }) => digest);
      from = to;
    } while (this.hasMoreThan(parent, from));
  }

  /** Whether the manifest has more than `count` children. */
  hasMoreThan(parent: Digest, count: number): boolean {
    return this.#statements.at.get(parent, count) !== undefined;
  }

  /** Stored manifests that refer to the digest. */
  parents(digest: Digest): Digest[] {
    return this.#statements.parents.all(digest).map(({ parent }) => parent);
  }

  /** Size in bytes that a stored manifest gives for the digest. */
  sizeOf(digest: Digest): number | undefined {
    return this.#statements.sizeOf.get(digest)?.size;
  }

  /** Whether the digest was stored at any time since a manifest that refers to it was. */
  wasStored(digest: Digest): boolean {
    return this.#statements.wasStored.get(digest) !== undefined;
  }

  /** Call when the digest is stored. */
  markStored(digest: Digest): void {
    this.#statements.markStored.run(digest);
  }

  /** Replaces all children of the manifest. Call within a transaction. */
  set(parent: Digest, children: readonly Child[]): void {
    const { removeAll, add } = this.#statements;
    removeAll.run(parent);
    children.forEach(({ digest, size, kind, foreign }, i) => {
      add.run(parent, i, digest, size, kind, foreign ? 1 : 0, digest);
    });
  }

  /** Removes some children, from the last. Returns whether more remain. */
  removeSome(parent: Digest): boolean {
    return this.#statements.removeSome.run(parent, parent, removedPerStep).changes >= removedPerStep;
  }
}

function statementsOf(connection: Connection) {
  return {
    of: connection.prepare<[Digest], Omit<Child, 'foreign'> & { foreign: number }>(
      'SELECT digest, size, kind, is_foreign AS "foreign" FROM children WHERE parent = ? ORDER BY position',
    ),
    stored: connection.prepare<[Digest, number, number], { digest: Digest }>(
      `SELECT children.digest FROM children JOIN blobs ON blobs.digest = children.digest
       WHERE parent = ? AND position >= ? AND position < ? ORDER BY position`,
    ),
    at: connection.prepare<[Digest, number]>('SELECT 1 FROM children WHERE parent = ? AND position = ?'),
    parents: connection.prepare<[Digest], { parent: Digest }>(
      'SELECT parent FROM children JOIN blobs ON blobs.digest = children.parent WHERE children.digest = ?',
    ),
    sizeOf: connection.prepare<[Digest], { size: number }>(
      'SELECT size FROM children WHERE digest = ? LIMIT 1',
    ),
    wasStored: connection.prepare<[Digest]>(
      'SELECT 1 FROM children WHERE digest = ? AND was_held = 1 LIMIT 1',
    ),
    markStored: connection.prepare<[Digest]>(
      'UPDATE children SET was_held = 1 WHERE digest = ? AND was_held = 0',
    ),
    removeAll: connection.prepare<[Digest]>('DELETE FROM children WHERE parent = ?'),
    add: connection.prepare(
      `INSERT INTO children VALUES (?, ?, ?, ?, ?, ?, EXISTS (SELECT 1 FROM blobs WHERE blobs.digest = ?))`,
    ),
    removeSome: connection.prepare<[Digest, Digest, number]>(
      `DELETE FROM children WHERE parent = ?
         AND position > (SELECT max(position) FROM children WHERE parent = ?) - ?`,
    ),
  };
}
