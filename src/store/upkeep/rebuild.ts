import Database from 'better-sqlite3';
import { copyFile, rename, stat, unlink } from 'node:fs/promises';
import { errorCode } from '../../util/errors.ts';
import { Catalog } from '../catalog/catalog.ts';
import { filesOf, identifyFile } from '../disk/files.ts';
import { backupPath, blobPath, catalogPath, lockPath } from '../disk/layout.ts';
import { lockDirectory } from '../disk/lock.ts';
import { prepareDirectory } from './startup-checks.ts';

export interface Rebuilt {
  /** What the new catalog is based on. */
  readonly base: 'catalog' | 'backup' | 'nothing';
  /** Files that had no row. */
  readonly found: number;
  /** Rows whose files are missing. */
  readonly lost: number;
  /** Path that the damaged catalog was renamed to. */
  readonly keptAs: string | undefined;
}

/**
 * Rebuilds the catalog from its intact rows or its backup, and from the blob files, so that nothing is downloaded
 * again. Links absent from the base are confirmed again by upstreams. Throws when a mirror is running.
 */
export async function rebuildCatalog(root: string, now: number): Promise<Rebuilt> {
  await prepareDirectory(root);
  const unlock = lockDirectory(lockPath(root));
  try {
    const file = catalogPath(root);
    let base: Rebuilt['base'] = 'catalog';
    let keptAs: string | undefined;
    if (!isIntact(file)) {
      keptAs = await moveAside(file, now);
      base = isIntact(backupPath(root)) ? 'backup' : 'nothing';
      if (base === 'backup') await copyFile(backupPath(root), file);
    }
    const catalog = new Catalog(file);
    try {
      // Blobs found are known by file name only: restart the scrub from the beginning.
      catalog.notes.set('scrub', '');
      return { base, keptAs, ...(await compare(root, catalog, now)) };
    } finally {
      catalog.close();
    }
  } finally {
    unlock();
  }
}

function isIntact(file: string): boolean {
  let db: Database.Database | undefined;
  try {
    db = new Database(file, { fileMustExist: true });
    const version = db.pragma('user_version', { simple: true }) as number;
    return version > 0 && db.pragma('quick_check', { simple: true }) === 'ok';
  } catch {
    return false;
  } finally {
    db?.close();
  }
}

async function moveAside(file: string, now: number): Promise<string | undefined> {
  const aside = `${file}.damaged-${new Date(now).toISOString().replace(/[:.]/g, '-')}`;
  for (const ending of ['-wal', '-shm']) await unlink(file + ending).catch(() => undefined);
  try {
    await rename(file, aside);
    return aside;
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

async function compare(
  root: string,
  catalog: Catalog,
  now: number,
): Promise<{ found: number; lost: number }> {
  let found = 0;
  for await (const digest of filesOf(root)) {
    if (catalog.blobs.get(digest)) continue;
    const path = blobPath(root, digest);
    const entry = await stat(path);
    if (!entry.isFile()) continue;
    const { size } = entry;
    const { mediaType, children } = await identifyFile(path, size);
    catalog.blobs.add({ digest, size, mediaType }, children, now);
    found += 1;
  }
  let lost = 0;
  for (let last = ''; ;) {
    const blobs = catalog.blobs.after(last, 1000);
    for (const { digest } of blobs) {
      const isThere = await stat(blobPath(root, digest)).then(
        () => true,
        (error: unknown) => errorCode(error) !== 'ENOENT',
      );
      if (isThere) continue;
      if (catalog.blobs.remove(digest)) while (catalog.blobs.removeMoreChildren(digest));
      catalog.links.removeAllTo(digest);
      lost += 1;
    }
    if (blobs.length === 0) return { found, lost };
    last = blobs.at(-1)?.digest ?? last;
  }
}
