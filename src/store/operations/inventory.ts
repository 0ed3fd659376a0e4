import type Database from 'better-sqlite3';
import type { Digest } from '../../oci/digest.ts';
import type { Pattern } from '../../oci/pattern.ts';
import { openToRead } from '../catalog/catalog-file.ts';
import { footprintOfSize } from '../catalog/tables/blobs.ts';
import { readIntervals } from '../ingest/journal.ts';

/**
 * Disk use of one repo, in bytes: blobs reached by its tags and links. Shared blobs count in each repo; purging a repo
 * frees its bytes, less shared and pinned ones.
 */
export interface RepoUsage {
  readonly registry: string;
  readonly repo: string;
  readonly blobs: number;
  readonly bytes: number;
  readonly sharedBytes: number;
  readonly pinnedBytes: number;
  /** By last use: within a day, a week, 30 days, or earlier. */
  readonly dayBytes: number;
  readonly weekBytes: number;
  readonly monthBytes: number;
  readonly olderBytes: number;
}

export interface Usage {
  readonly blobs: number;
  readonly bytes: number;
  readonly pinnedBytes: number;
  /** Of unfinished ingests. */
  readonly unfinishedBytes: number;
  readonly repos: readonly RepoUsage[];
}

export interface TagEntry {
  readonly registry: string;
  readonly repo: string;
  readonly tag: string;
  readonly digest: Digest;
  readonly mediaType: string;
  /** Bytes stored of the image. */
  readonly heldBytes: number;
  readonly isPinned: boolean;
  /** Milliseconds since the epoch. */
  readonly checkedAt: number;
  readonly usedAt: number | null;
}

export interface StoredBlob {
  readonly digest: Digest;
  readonly size: number;
}

const dayMs = 24 * 60 * 60_000;

/** Read-only queries on a catalog that another process may have open. */
export class Inventory {
  readonly #db: Database.Database;

  /** Throws when the catalog is missing or damaged. */
  constructor(path: string) {
    this.#db = openToRead(path);
  }

  /** Patterns pinned by command. */
  pins(): string[] {
    return this.#db
      .prepare<[], { pattern: string }>('SELECT pattern FROM pins ORDER BY pattern')
      .all()
      .map(({ pattern }) => pattern);
  }

  totals(): Pick<Usage, 'blobs' | 'bytes' | 'pinnedBytes'> {
    const totals = this.#db
      .prepare<[], Pick<Usage, 'blobs' | 'bytes' | 'pinnedBytes'>>(
        `SELECT count(*) AS blobs, coalesce(sum(${footprintOfSize}), 0) AS bytes,
           coalesce(sum(${footprintOfSize} * pinned), 0) AS pinnedBytes
         FROM blobs`,
      )
      .get();
    return totals ?? { blobs: 0, bytes: 0, pinnedBytes: 0 };
  }

  usage(now: number): Usage {
    const ingests = this.#db.prepare<[], { present: string }>('SELECT present FROM ingests').all();
    const [day, week, month] = [now - dayMs, now - 7 * dayMs, now - 30 * dayMs];
    const repos = this.#db
      .prepare<[object], RepoUsage>(
        `WITH RECURSIVE reach (registry, repo, digest) AS (
           SELECT registry, repo, digest FROM links WHERE repo <> ''
           UNION SELECT registry, repo, digest FROM tags
           UNION SELECT registry, repo, children.digest FROM reach JOIN children ON children.parent = reach.digest
         ), counted AS MATERIALIZED (
           SELECT registry, repo, digest, count(*) OVER (PARTITION BY digest) AS repos FROM reach
         ), owned AS (
           SELECT registry, repo, pinned, used_at, ${footprintOfSize} AS bytes, repos > 1 AS shared
           FROM counted JOIN blobs USING (digest)
         )
         SELECT registry, repo, count(*) AS blobs, sum(bytes) AS bytes, sum(bytes * shared) AS sharedBytes,
           sum(bytes * pinned) AS pinnedBytes,
           sum(iif(used_at >= @day, bytes, 0)) AS dayBytes,
           sum(iif(used_at < @day AND used_at >= @week, bytes, 0)) AS weekBytes,
           sum(iif(used_at < @week AND used_at >= @month, bytes, 0)) AS monthBytes,
           sum(iif(used_at < @month, bytes, 0)) AS olderBytes
         FROM owned GROUP BY registry, repo ORDER BY 4 DESC`,
      )
      .all({ day, week, month });
    return {
      ...this.totals(),
      unfinishedBytes: ingests.reduce((sum, { present }) => sum + readIntervals(present).total, 0),
      repos,
    };
  }

  /** Tags that match the pattern, or all. */
  tags(pattern: Pattern | undefined): TagEntry[] {
    const rows = this.#db
      .prepare<[string], Omit<TagEntry, 'isPinned'> & { isPinned: number }>(
        `WITH RECURSIVE reach (root, digest) AS (
           SELECT DISTINCT digest, digest FROM tags
           UNION SELECT reach.root, children.digest FROM reach JOIN children ON children.parent = reach.digest
         ), held AS (
           SELECT root, sum(size) AS bytes, max(used_at) AS usedAt FROM reach JOIN blobs USING (digest) GROUP BY root
         )
         SELECT registry, repo, tag, tags.digest, tags.media_type AS mediaType, coalesce(held.bytes, 0) AS heldBytes,
           coalesce(blobs.pinned, 0) AS isPinned, checked_at AS checkedAt, usedAt
         FROM tags LEFT JOIN held ON held.root = tags.digest LEFT JOIN blobs ON blobs.digest = tags.digest
         WHERE registry || '/' || repo GLOB ? ORDER BY registry, repo, tag`,
      )
      .all(pattern?.glob ?? '*');
    return rows
      .filter(({ registry, repo, tag }) => !pattern || pattern.matches({ registry, name: repo }, tag))
      .map((row) => ({ ...row, isPinned: row.isPinned === 1 }));
  }

  /** All blobs, read in batches. */
  *blobs(): Generator<StoredBlob> {
    const next = this.#db.prepare<[string], StoredBlob>(
      'SELECT digest, size FROM blobs WHERE digest > ? ORDER BY digest LIMIT 1000',
    );
    for (let last = ''; ;) {
      const found = next.all(last);
      if (found.length === 0) return;
      yield* found;
      last = found.at(-1)?.digest ?? last;
    }
  }

  has(digest: Digest): boolean {
    return this.#db.prepare('SELECT 1 FROM blobs WHERE digest = ?').get(digest) !== undefined;
  }

  close(): void {
    this.#db.close();
  }
}
