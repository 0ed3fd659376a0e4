import type { Digest } from '../../../oci/digest.ts';
import type { Connection } from '../connection.ts';

/** Patterns pinned by command, and the `pinned` flag of blobs, which also covers configured pins. */
export class PinTable {
  readonly #connection: Connection;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#connection = connection;
    this.#statements = statementsOf(connection);
  }

  /** Patterns pinned by command. */
  patterns(): string[] {
    return this.#statements.patterns.all().map(({ pattern }) => pattern);
  }

  /** `now`: ms since the epoch. Throws when the catalog is locked. */
  add(pattern: string, now: number): void {
    this.#statements.add.run(pattern, now);
  }

  /** Returns whether the pattern existed. Throws when the catalog is locked. */
  remove(pattern: string): boolean {
    return this.#statements.remove.run(pattern).changes === 1;
  }

  isPinned(digest: Digest): boolean {
    return this.#statements.isPinned.get(digest) !== undefined;
  }

  /** Whether a pinned manifest refers to the digest. */
  hasPinnedParent(digest: Digest): boolean {
    return this.#statements.hasPinnedParent.get(digest) !== undefined;
  }

  /** The next `count` pinned blobs in digest order, after `digest`. */
  pinnedAfter(digest: string, count: number): Digest[] {
    return this.#statements.pinnedAfter.all(digest, count).map(({ digest }) => digest);
  }

  /** Sets the flag of `pinned`, and clears that of `others`. */
  setPinned(pinned: readonly Digest[], others: readonly Digest[]): void {
    this.#connection.queue.do(() => {
      if (pinned.length + others.length === 0) return;
      const { setPinned } = this.#statements;
      this.#connection.transaction(() => {
        for (const digest of pinned) setPinned.run(1, digest);
        for (const digest of others) setPinned.run(0, digest);
      });
    });
  }
}

function statementsOf(connection: Connection) {
  return {
    patterns: connection.prepare<[], { pattern: string }>('SELECT pattern FROM pins ORDER BY pattern'),
    add: connection.prepare<[string, number]>('INSERT OR IGNORE INTO pins VALUES (?, ?)'),
    remove: connection.prepare<[string]>('DELETE FROM pins WHERE pattern = ?'),
    isPinned: connection.prepare<[Digest]>('SELECT 1 FROM blobs WHERE digest = ? AND pinned = 1'),
    hasPinnedParent: connection.prepare<[Digest]>(
      `SELECT 1 FROM children JOIN blobs ON blobs.digest = children.parent
       WHERE children.digest = ? AND blobs.pinned = 1 LIMIT 1`,
    ),
    pinnedAfter: connection.prepare<[string, number], { digest: Digest }>(
      'SELECT digest FROM blobs WHERE pinned = 1 AND digest > ? ORDER BY digest LIMIT ?',
    ),
    setPinned: connection.prepare<[number, Digest]>('UPDATE blobs SET pinned = ? WHERE digest = ?'),
  };
}
