import type { Digest } from '../../../oci/digest.ts';
import type { Repo, RepoName } from '../../../oci/repo.ts';
import { stepMs } from '../../../util/steps.ts';
import type { Connection } from '../connection.ts';

/** A page of a tag or referrers list, as the upstream sent it. */
export interface ListRow {
  /** Of the page's bytes; null: the upstream has no such list. */
  readonly digest: Digest | null;
  /** Bytes of the page. */
  readonly size: number;
  /** Query of the next page. */
  readonly next: string | null;
  /** Filters that the upstream reports as applied (OCI-Filters-Applied). */
  readonly filters: string | null;
  /** When the upstream sent it, ms since the epoch. */
  readonly checkedAt: number;
}

const maxLists = 50_000;
const maxListsOfRepo = 500;

/** Pages of tag and referrers lists. A page is named by the end of its path and its query. */
export class ListTable {
  readonly #connection: Connection;
  readonly #statements: ReturnType<typeof statementsOf>;
  readonly #maxBytes: () => number;
  /** An upper bound; undefined: not counted yet. */
  #total: { count: number; bytes: number } | undefined;

  /** `maxBytes`: current limit for all lists together. Lists do not count against the store's cap. */
  constructor(connection: Connection, maxBytes: () => number) {
    this.#connection = connection;
    this.#maxBytes = maxBytes;
    this.#statements = statementsOf(connection);
  }

  get(repo: RepoName, page: string): ListRow | undefined {
    return this.#statements.get.get(repo.registry, repo.name, page);
  }

  body(repo: RepoName, page: string): Buffer | undefined {
    return this.#statements.body.get(repo.registry, repo.name, page)?.body ?? undefined;
  }

  /**
   * Stores a page. Beyond the limits the pages checked longest ago are removed: first those of the same repo, since
   * clients choose the pages, then those of the upstream with the largest lists. A page above the limit for all lists
   * is not stored.
   */
  set({ registry, name, upstream }: Repo, page: string, row: ListRow, body: Buffer | null): void {
    this.#connection.queue.do(() => {
      const { set, remove, countOfRepo, removeOldestOfRepo } = this.#statements;
      const { digest, size, next, filters, checkedAt } = row;
      this.#connection.transaction(() => {
        if (size > this.#maxBytes()) {
          remove.run(registry, name, page);
          return;
        }
        set.run(registry, name, page, digest, size, body, next, filters, checkedAt, upstream);
        const excess = (countOfRepo.get(registry, name)?.count ?? 0) - maxListsOfRepo;
        if (excess > 0) removeOldestOfRepo.run(registry, name, excess);
        this.#keepToLimits(1, size);
      });
    });
  }

  /** Removes pages beyond the current limits, some at a time. Call periodically: limits may change. */
  keepToLimits(): void {
    if (this.#connection.isDamaged || this.#connection.queue.isWaiting) return;
    this.#connection.queue.do(() => this.#connection.transaction(() => this.#keepToLimits(0, 0)));
  }

  #keepToLimits(addedCount: number, addedBytes: number): void {
    const { total, removeOldest } = this.#statements;
    const maxBytes = this.#maxBytes();
    this.#total ??= total.get() ?? { count: 0, bytes: 0 };
    // A replaced page is counted twice: the recount comes slightly early.
    this.#total.count += addedCount;
    this.#total.bytes += addedBytes;
    if (this.#total.count <= maxLists && this.#total.bytes <= maxBytes) return;
    this.#total = total.get() ?? { count: 0, bytes: 0 };
    const until = performance.now() + stepMs;
    while (this.#total.count > maxLists * 0.9 || this.#total.bytes > maxBytes * 0.9) {
      const removed = removeOldest.get();
      if (!removed) break;
      this.#total.count -= 1;
      this.#total.bytes -= removed.bytes;
      // The next call removes the rest.
      if (performance.now() >= until) break;
    }
  }

  /** Records that the upstream has no such list. `checkedAt`: ms since the epoch. */
  setAbsent(repo: Repo, page: string, checkedAt: number): void {
    this.set(repo, page, { digest: null, size: 0, next: null, filters: null, checkedAt }, null);
  }

  /** Removes all pages of the repo whose name starts with `prefix`. */
  removeWithPrefix({ registry, name }: RepoName, prefix: string): void {
    this.#connection.queue.do(() => {
      this.#statements.removeMatching.run(registry, name, `${prefix}*`);
    });
  }

  /** Removes all pages of repos that match an SQLite GLOB over `registry/repo`. */
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
    remove: connection.prepare<[string, string, string]>(
      'DELETE FROM lists WHERE registry = ? AND repo = ? AND page = ?',
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
