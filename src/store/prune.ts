import { setTimeout as sleep } from 'node:timers/promises';
import type { Database } from 'better-sqlite3';

export interface Prune {
  /** The catalog. */
  readonly file: string;
  /** Links to what is not here go when they were confirmed before (ms since the epoch). */
  readonly linksBefore: number;
  /** Of tags so many stay, if that many are not held: those that were asked about last. */
  readonly maxTags: number;
}

export interface Pruned {
  readonly links: number;
  readonly tags: number;
}

/** Others want to write too: each step takes a few milliseconds. */
const rowsAtOnce = 200;
const restMs = 5;

/**
 * Removes rows of the catalog that serve nobody: links to blobs that are neither stored nor arriving, and tags that are too
 * many, first those whose manifest is not held. It runs beside the mirror, with a connection of its own.
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
  return { links, tags };
}

/** Looks for all of it first: that holds up nobody who writes. */
async function inSteps(db: Database, find: string, args: number[], remove: string): Promise<number> {
  const rows = db.prepare(find).all(...args);
  const statement = db.prepare(remove);
  const removeSome = db.transaction((some: unknown[]) => some.forEach((row) => statement.run(row)));
  for (let at = 0; at < rows.length; at += rowsAtOnce) {
    removeSome.immediate(rows.slice(at, at + rowsAtOnce));
    await sleep(restMs);
  }
  return rows.length;
}
