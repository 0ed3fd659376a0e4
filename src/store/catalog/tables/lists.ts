import type { Digest } from '../../../oci/digest.ts';
import type { Repo, RepoName } from '../../../oci/repo.ts';
import type { Connection } from '../connection.ts';

/** A page of tags or referrers, as the upstream gave it. */
export interface ListRow {
  /** Of the page's bytes; null: the upstream keeps no such list. */
  readonly digest: Digest | null;
  /** Bytes of the page. */
  readonly size: number;
  /** The query of the page after it. */
  readonly next: string | null;
  /** What the upstream says that it has filtered by. */
  readonly filters: string | null;
  /** When the upstream gave it (ms since the epoch). */
  readonly checkedAt: number;
}

/** Lists do not count against the cap of the store: they have limits of their own. */
const maxListBytes = 64 * 1024 * 1024;
const maxLists = 50_000;
const maxListsOfRepo = 500;

/** Pages of lists of tags and of referrers. A page is named by the end of its path and its query. */
export class ListTable {
  readonly #connection: Connection;
  readonly #statements: ReturnType<typeof statementsOf>;
  /** At least what there is; undefined: not counted yet. */
  #total: { count: number; bytes: number } | undefined;

  constructor(connection: Connection) {
    this.#connection = connection;
    this.#statements = statementsOf(connection);
  }

  get(repo: RepoName, page: string): ListRow | undefined {
    return this.#statements.get.get(repo.registry, repo.name, page);
  }

  body(repo: RepoName, page: string): Buffer | undefined {
    return this.#statements.body.get(repo.registry, repo.name, page)?.body ?? undefined;
  }

  /**
   * Beyond the limits the pages are removed that were checked longest ago: first those of the same repo, since clients choose the
   * pages, then those of the upstream whose lists take most.
   */
  set({ registry, name, upstream }: Repo, page: string, row: ListRow, body: Buffer | null): void {
    this.#connection.queue.do(() => {
      const { set, countOfRepo, removeOldestOfRepo } = this.#statements;
      const { digest, size, next, filters, checkedAt } = row;
      this.#connection.transaction(() => {
        set.run(registry, name, page, digest, size, body, next, filters, checkedAt, upstream);
        const excess = (countOfRepo.get(registry, name)?.count ?? 0) - maxListsOfRepo;
        if (excess > 0) removeOldestOfRepo.run(registry, name, excess);
        this.#keepToLimits(size);
      });
    });
  }

  #keepToLimits(addedBytes: number): void {
    const { total, removeOldest } = this.#statements;
    this.#total ??= total.get() ?? { count: 0, bytes: 0 };
    // A page that was replaced is counted twice: the rows are counted again somewhat too early.
    this.#total.count += 1;
    this.#total.bytes += addedBytes;
    if (this.#total.count <= maxLists && this.#total.bytes <= maxListBytes) return;
    this.#total = total.get() ?? { count: 0, bytes: 0 };
    while (this.#total.count > maxLists * 0.9 || this.#total.bytes > maxListBytes * 0.9) {
      const removed = removeOldest.get();
      if (!removed) break;
      this.#total.count -= 1;
      this.#total.bytes -= removed.bytes;
    }
  }

  /** The upstream keeps no such list. */
  setAbsent(repo: Repo, page: string, checkedAt: number): void {
    this.set(repo, page, { digest: null, size: 0, next: null, filters: null, checkedAt }, null);
  }

  /** All pages of the repo whose name starts with `prefix`. */
  removeWithPrefix({ registry, name }: RepoName, prefix: string): void {
    this.#connection.queue.do(() => {
      this.#statements.removeMatching.run(registry, name, `${prefix}*`);
    });
  }

  /** All pages of repos that match a GLOB over `registry/repo`. */
  removeOfRepos(glob: string): void {
    this.#connection.queue.do(() => {
      this.#statements.removeOfRepos.run(glob);
    });
  }
}

function statementsOf(connection: Connection) {
  return {
    get: connection.prepare<[string, string, string], ListRow>(
      `SELECT digest, size, next, filters, checked_at AS checkedAt FROM lists
       WHERE registry = ? AND repo = ? AND page = ?`,
    ),
    body: connection.prepare<[string, string, string], { body: Buffer | null }>(
      'SELECT body FROM lists WHERE registry = ? AND repo = ? AND page = ?',
    ),
    set: connection.prepare(
      `INSERT OR REPLACE INTO lists (registry, repo, page, digest, size, body, next, filters, checked_at, upstream)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    ),
    countOfRepo: connection.prepare<[string, string], { count: number }>(
      'SELECT count(*) AS count FROM lists WHERE registry = ? AND repo = ?',
    ),
    removeOldestOfRepo: connection.prepare<[string, string, number]>(
      `DELETE FROM lists WHERE rowid IN
         (SELECT rowid FROM lists WHERE registry = ? AND repo = ? ORDER BY digest IS NOT NULL, checked_at LIMIT ?)`,
    ),
    removeMatching: connection.prepare<[string, string, string]>(
      'DELETE FROM lists WHERE registry = ? AND repo = ? AND page GLOB ?',
    ),
    removeOfRepos: connection.prepare<[string]>(`DELETE FROM lists WHERE registry || '/' || repo GLOB ?`),
    total: connection.prepare<[], { count: number; bytes: number }>(
      'SELECT count(*) AS count, total(size) AS bytes FROM lists',
    ),
    removeOldest: connection.prepare<[], { bytes: number }>(
      `DELETE FROM lists WHERE rowid =
         (SELECT rowid FROM lists
          WHERE upstream = (SELECT upstream FROM lists GROUP BY upstream ORDER BY total(size) + 500 * count(*) DESC LIMIT 1)
          ORDER BY checked_at LIMIT 1)
       RETURNING size AS bytes`,
    ),
  };
}
