import type { Database } from 'better-sqlite3';
import { setTimeout as sleep } from 'node:timers/promises';
import { errorCode } from '../../util/errors.ts';

export interface Prune {
  /** The catalog. */
  readonly file: string;
  /** Remove links to absent blobs if confirmed before this time (ms since the epoch). */
  readonly linksBefore: number;
  /** Limit for tags. Beyond it, tags without a stored manifest are removed first, then those checked longest ago. */
  readonly maxTags: number;
}

export interface Pruned {
  readonly links: number;
  readonly tags: number;
  /** Children left behind by an interrupted deletion of their manifest. */
  readonly children: number;
}

/** Each step holds the write lock for a few milliseconds only. */
const rowsPerStep = 200;
const pauseMs = 5;
const busyTries = 20;
const busyPauseMs = 100;

/**
 * Removes unneeded rows: links to blobs that are neither stored nor being fetched, tags beyond the limit (first those
 * whose manifest is not stored), and children of deleted manifests. Uses its own connection, while the mirror runs.
 */
export async function prune(db: Database, { linksBefore, maxTags }: Prune): Promise<Pruned> {
  const links = await inSteps(
    db,
    `SELECT digest, registry, repo FROM links WHERE confirmed_at < ?
       AND NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.digest = links.digest)
       AND NOT EXISTS (SELECT 1 FROM ingests WHERE ingests.digest = links.digest)`,
    [linksBefore],
    'DELETE FROM links WHERE digest = @digest AND registry = @registry AND repo = @repo',
  );
  const { count } = db.prepare<[], { count: number }>('SELECT count(*) AS count FROM tags').get() ?? {
    count: 0,
  };
  const tags = await inSteps(
    db,
    `SELECT registry, repo, tag FROM tags LEFT JOIN blobs ON blobs.digest = tags.digest
     ORDER BY blobs.digest IS NOT NULL, checked_at LIMIT ?`,
    [Math.max(0, count - maxTags)],
    'DELETE FROM tags WHERE registry = @registry AND repo = @repo AND tag = @tag',
  );
  const children = await inSteps(
    db,
    // Skips from parent to parent instead of reading every child.
    `WITH RECURSIVE parents (parent) AS (
       SELECT min(parent) FROM children
       UNION ALL SELECT (SELECT min(parent) FROM children WHERE parent > parents.parent) FROM parents WHERE parent IS NOT NULL
     )
     SELECT parent, position FROM parents JOIN children USING (parent)
     WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.digest = parent)`,
    [],
    // The manifest may have been stored again since.
    `DELETE FROM children WHERE parent = @parent AND position = @position
       AND NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.digest = @parent)`,
  );
  return { links, tags, children };
}

/** Reads all rows first: reading does not block writers. */
async function inSteps(db: Database, find: string, args: number[], remove: string): Promise<number> {
  const rows = db.prepare(find).all(...args);
  const statement = db.prepare(remove);
  const removeSome = db.transaction((some: unknown[]) => some.forEach((row) => statement.run(row)));
  for (let at = 0; at < rows.length; at += rowsPerStep) {
    const some = rows.slice(at, at + rowsPerStep);
    for (let tries = 0; ; tries++) {
      try {
        removeSome.immediate(some);
        break;
      } catch (error) {
        // Another connection holds the write lock.
        if (tries >= busyTries || errorCode(error) !== 'SQLITE_BUSY') throw error;
        await sleep(busyPauseMs);
      }
    }
    await sleep(pauseMs);
  }
  return rows.length;
}
