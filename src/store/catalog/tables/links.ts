import type { Digest } from '../../../oci/digest.ts';
import type { RepoName } from '../../../oci/repo.ts';
import type { Connection } from '../connection.ts';
import type { WriteQueue } from '../write-queue.ts';

export interface LinkRow {
  /** When the upstream last confirmed the link, ms since the epoch. */
  readonly confirmedAt: number;
  /** Media type under which the upstream served the manifest in this repo. */
  readonly mediaType: string | null;
}

/** Repo name of a link that covers the whole registry. */
export const wholeRegistry = '';

/** Which blobs belong to which repos, as confirmed by upstreams. */
export class LinkTable {
  readonly #connection: Connection;
  readonly #queue: WriteQueue;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#connection = connection;
    this.#queue = connection.queue;
    this.#statements = statementsOf(connection);
  }

  /** `repo`: its name, or `wholeRegistry`. */
  get(digest: Digest, registry: string, repo: string): LinkRow | undefined {
    return this.#statements.get.get(digest, registry, repo);
  }

  /**
   * Links the digest to the repo; `isPublic`: also to every repo of the registry. `mediaType`: of a manifest; `now`:
   * ms since the epoch.
   */
  add(
    digest: Digest,
    { registry, name }: RepoName,
    { isPublic, mediaType, now }: { isPublic: boolean; mediaType?: string | undefined; now: number },
  ): void {
    this.#queue.do(() => {
      const { add } = this.#statements;
      this.#connection.transaction(() => {
        add.run(digest, registry, name, now, mediaType ?? null);
        if (isPublic) add.run(digest, registry, wholeRegistry, now, null);
      });
    });
  }

  remove(digest: Digest, registry: string, repo: string): void {
    this.#queue.do(() => {
      this.#statements.remove.run(digest, registry, repo);
    });
  }

  /** Removes all links to the digest. */
  removeAllTo(digest: Digest): void {
    this.#queue.do(() => {
      this.#statements.removeAllTo.run(digest);
    });
  }

  /** Repos that the digest is linked to. */
  reposOf(digest: Digest): { registry: string; repo: string }[] {
    return this.#statements.reposOf.all(digest);
  }

  /** Registries with at least one public blob. */
  publicRegistries(): string[] {
    return this.#statements.publicRegistries.all().map(({ registry }) => registry);
  }

  /** Removes the registry-wide links; links to single repos stay. */
  removePublic(registry: string): void {
    this.#queue.do(() => {
      this.#statements.removePublic.run(registry);
    });
  }
}

function statementsOf(connection: Connection) {
  return {
    get: connection.prepare<[Digest, string, string], LinkRow>(
      `SELECT confirmed_at AS confirmedAt, media_type AS mediaType FROM links
       WHERE digest = ? AND registry = ? AND repo = ?`,
    ),
    add: connection.prepare<[Digest, string, string, number, string | null]>(
      `INSERT INTO links VALUES (?, ?, ?, ?, ?)
       ON CONFLICT DO UPDATE SET confirmed_at = max(confirmed_at, excluded.confirmed_at),
         media_type = coalesce(excluded.media_type, media_type)`,
    ),
    remove: connection.prepare<[Digest, string, string]>(
      'DELETE FROM links WHERE digest = ? AND registry = ? AND repo = ?',
    ),
    removeAllTo: connection.prepare<[Digest]>('DELETE FROM links WHERE digest = ?'),
    reposOf: connection.prepare<[Digest], { registry: string; repo: string }>(
      `SELECT registry, repo FROM links WHERE digest = ? AND repo <> ''`,
    ),
    publicRegistries: connection.prepare<[], { registry: string }>(
      `SELECT DISTINCT registry FROM links WHERE repo = ''`,
    ),
    removePublic: connection.prepare<[string]>(`DELETE FROM links WHERE registry = ? AND repo = ''`),
  };
}
