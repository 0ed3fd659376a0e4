import type { Descriptor } from '../../../oci/content.ts';
import type { Digest } from '../../../oci/digest.ts';
import type { RepoName } from '../../../oci/repo.ts';
import type { Connection } from '../connection.ts';
import type { WriteQueue } from '../write-queue.ts';

export interface TagRow extends Descriptor {
  /** When the upstream last confirmed the tag, ms since the epoch. */
  readonly checkedAt: number;
  /**
   * When the registry at the end of a chain of mirrors last confirmed the tag, as far as known; ms since the epoch.
   */
  readonly registryCheckedAt: number;
  /** The upstream is a mirror that answered from a stale cache. */
  readonly isUpstreamStale: boolean;
  /** Digest that the tag pointed to before. */
  readonly previous: Digest | null;
}

/** Called before a moved or removed tag is written. */
export type OnTagMoved = (registry: string, repo: string, tag: string) => void;

/** Tags and the manifests they point to, as upstreams last confirmed. */
export class TagTable {
  /** Tags added or moved since the counter was last reset. */
  moved = 0;
  readonly #onMoved: OnTagMoved;
  readonly #queue: WriteQueue;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection, onMoved: OnTagMoved) {
    this.#onMoved = onMoved;
    this.#queue = connection.queue;
    this.#statements = statementsOf(connection);
  }

  get(repo: RepoName, tag: string): TagRow | undefined {
    const row = this.#statements.get.get(repo.registry, repo.name, tag);
    return row && { ...row, isUpstreamStale: row.isUpstreamStale === 1 };
  }

  /** `isMoved`: the tag is new or pointed to another digest. */
  set(repo: RepoName, tag: string, row: TagRow, isMoved: boolean): void {
    if (isMoved) {
      this.#onMoved(repo.registry, repo.name, tag);
      this.moved += 1;
    }
    const { digest, size, mediaType, checkedAt, registryCheckedAt, isUpstreamStale, previous } = row;
    this.#queue.do(() => {
      this.#statements.set.run(
        ...[repo.registry, repo.name, tag, digest, size, mediaType],
        ...[checkedAt, registryCheckedAt, isUpstreamStale ? 1 : 0, previous],
      );
    });
  }

  remove(repo: RepoName, tag: string): void {
    this.#onMoved(repo.registry, repo.name, tag);
    this.#queue.do(() => {
      this.#statements.remove.run(repo.registry, repo.name, tag);
    });
  }
}

function statementsOf(connection: Connection) {
  return {
    get: connection.prepare<
      [string, string, string],
      Omit<TagRow, 'isUpstreamStale'> & { isUpstreamStale: number }
    >(
      `SELECT digest, size, media_type AS mediaType, checked_at AS checkedAt,
         coalesce(said_at, checked_at) AS registryCheckedAt, upstream_stale AS isUpstreamStale, previous FROM tags
       WHERE registry = ? AND repo = ? AND tag = ?`,
    ),
    set: connection.prepare(
      `INSERT OR REPLACE INTO tags (registry, repo, tag, digest, size, media_type, checked_at, said_at, upstream_stale, previous)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    ),
    remove: connection.prepare<[string, string, string]>(
      'DELETE FROM tags WHERE registry = ? AND repo = ? AND tag = ?',
    ),
  };
}
