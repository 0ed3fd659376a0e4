import type { Digest } from '../../../oci/digest.ts';
import type { Child } from '../../../oci/manifest.ts';
import type { Connection } from '../connection.ts';

/** So many rows are read or removed in one step, which nothing can interrupt. */
const heldAtOnce = 500;
const removedAtOnce = 1000;

/** What manifests that are stored name: their configs, layers and manifests. */
export class ChildTable {
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#statements = statementsOf(connection);
  }

  /** In the order of the manifest. */
  of(parent: Digest): Child[] {
    return this.#statements.of.all(parent).map((row) => ({ ...row, foreign: row.foreign === 1 }));
  }

  /** Those children that are stored, some at a time. */
  *held(parent: Digest): Generator<Digest[], undefined> {
    let from = 0;
    do {
      const to = from + heldAtOnce;
      yield this.#statements.held.all(parent, from, to).map(({ digest }) => digest);
      from = to;
    } while (this.hasMoreThan(parent, from));
  }

  /** Whether a manifest has more than so many children. */
  hasMoreThan(parent: Digest, count: number): boolean {
    return this.#statements.at.get(parent, count) !== undefined;
  }

  /** Manifests that are stored and name the digest. */
  parents(digest: Digest): Digest[] {
    return this.#statements.parents.all(digest).map(({ parent }) => parent);
  }

  /** The size in bytes that some manifest gives for the digest. */
  sizeOf(digest: Digest): number | undefined {
    return this.#statements.sizeOf.get(digest)?.size;
  }

  /** Whether the digest was ever stored while a manifest names it. */
  wasHeld(digest: Digest): boolean {
    return this.#statements.wasHeld.get(digest) !== undefined;
  }

  /** To be called when the digest is stored. */
  setHeld(digest: Digest): void {
    this.#statements.setHeld.run(digest);
  }

  /** Replaces all children of a manifest. To be called in a transaction. */
  set(parent: Digest, children: readonly Child[]): void {
    const { removeAll, add } = this.#statements;
    removeAll.run(parent);
    children.forEach(({ digest, size, kind, foreign }, i) => {
      add.run(parent, i, digest, size, kind, foreign ? 1 : 0, digest);
    });
  }

  /** Removes some of the children of a manifest, from the end. Returns whether there are more. */
  removeSome(parent: Digest): boolean {
    return this.#statements.removeSome.run(parent, parent, removedAtOnce).changes >= removedAtOnce;
  }
}

function statementsOf(connection: Connection) {
  return {
    of: connection.prepare<[Digest], Omit<Child, 'foreign'> & { foreign: number }>(
      'SELECT digest, size, kind, is_foreign AS "foreign" FROM children WHERE parent = ? ORDER BY position',
    ),
    held: connection.prepare<[Digest, number, number], { digest: Digest }>(
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
    wasHeld: connection.prepare<[Digest]>('SELECT 1 FROM children WHERE digest = ? AND was_held = 1 LIMIT 1'),
    setHeld: connection.prepare<[Digest]>(
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
