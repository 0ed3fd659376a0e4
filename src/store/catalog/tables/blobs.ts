import { blobMediaType, type Descriptor } from '../../../oci/content.ts';
import type { Digest } from '../../../oci/digest.ts';
import type { Child } from '../../../oci/manifest.ts';
import type { Connection } from '../connection.ts';
import { worthOf } from '../worth.ts';
import type { ChildTable } from './children.ts';
import type { Uses } from './uses.ts';

/** Disk use of a file of `size` bytes, in whole 4 KiB blocks: the cap is counted as `du` counts. */
export function footprint(size: number): number {
  return Math.ceil(size / 4096) * 4096;
}

/** The same as an SQL expression over the column `size`. */
export const footprintOfSize = '(size + 4095) / 4096 * 4096';

/** Stored blobs and manifests. A manifest is added and removed together with its children. */
export class BlobTable {
  readonly #connection: Connection;
  readonly #children: ChildTable;
  readonly #uses: Uses;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection, children: ChildTable, uses: Uses) {
    this.#connection = connection;
    this.#children = children;
    this.#uses = uses;
    this.#statements = statementsOf(connection);
  }

  get(digest: Digest): Descriptor | undefined {
    return this.#statements.get.get(digest);
  }

  /**
   * Returns whether the blob is new. A manifest added again as a blob stays a manifest; a blob added again as a
   * manifest becomes one. Throws when the catalog is damaged or locked.
   */
  add({ digest, size, mediaType }: Descriptor, children: readonly Child[], now: number): boolean {
    this.#connection.expectUndamaged();
    const { add, setMediaType } = this.#statements;
    return this.#connection.transaction(() => {
      const isManifest = mediaType !== blobMediaType;
      const worth = worthOf(size, isManifest);
      const priority = this.#uses.inflation + worth;
      const isNew = add.run(digest, size, mediaType, now, now, worth, priority).changes === 1;
      if (isNew) this.#children.markStored(digest);
      if (!isManifest) return isNew;
      if (!isNew) {
        if (this.get(digest)?.mediaType === mediaType) return false;
        setMediaType.run(mediaType, worth, digest);
      }
      this.#children.set(digest, children);
      return isNew;
    });
  }

  /**
   * Removes the row; tags that point to it stay. Returns whether children remain: then call `removeMoreChildren`.
   * Throws when the catalog is damaged or locked.
   */
  remove(digest: Digest): boolean {
    this.#connection.expectUndamaged();
    this.#uses.forget(digest);
    return this.#connection.transaction(() => {
      this.#statements.remove.run(digest);
      return this.removeMoreChildren(digest);
    });
  }

  /** Removes some children of a removed blob, unless it was added again. Returns whether more remain. */
  removeMoreChildren(digest: Digest): boolean {
    return this.get(digest) === undefined && this.#children.removeSome(digest);
  }

  /** The next `count` blobs in digest order, after `digest`. */
  after(digest: string, count: number): Descriptor[] {
    return this.#statements.after.all(digest, count);
  }

  /** Blobs whose digest starts with `prefix`, such as `sha256:ab`. */
  withPrefix(prefix: string): Digest[] {
    return this.#statements.withPrefix.all(prefix, `${prefix}g`).map(({ digest }) => digest);
  }

  /** Disk use of all blobs, in bytes. */
  footprint(): number {
    return this.#statements.footprint.get()?.total ?? 0;
  }
}

function statementsOf(connection: Connection) {
  return {
    get: connection.prepare<[Digest], Descriptor>(
      'SELECT digest, size, media_type AS mediaType FROM blobs WHERE digest = ?',
    ),
    add: connection.prepare(
      `INSERT INTO blobs (digest, size, media_type, stored_at, used_at, worth, priority) VALUES (?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (digest) DO NOTHING`,
    ),
    setMediaType: connection.prepare<[string, number, Digest]>(
      'UPDATE blobs SET media_type = ?, worth = ? WHERE digest = ?',
    ),
    remove: connection.prepare<[Digest]>('DELETE FROM blobs WHERE digest = ?'),
    after: connection.prepare<[string, number], Descriptor>(
      'SELECT digest, size, media_type AS mediaType FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?',
    ),
    withPrefix: connection.prepare<[string, string], { digest: Digest }>(
      'SELECT digest FROM blobs WHERE digest >= ? AND digest < ?',
    ),
    footprint: connection.prepare<[], { total: number }>(
      `SELECT coalesce(sum(${footprintOfSize}), 0) AS total FROM blobs`,
    ),
  };
}
