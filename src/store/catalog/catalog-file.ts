import Database from 'better-sqlite3';
import { existsSync, statSync } from 'node:fs';
import { errorCode } from '../../util/errors.ts';
import { catalogPath, lockPath } from '../disk/layout.ts';
import { isLocked } from '../disk/lock.ts';
import { copyOf } from './copy-of-file.ts';
import { expectIntact, explain } from './damage.ts';
import { expectVersion, migrate } from './schema.ts';

/** A checkpoint that resets the write-ahead log truncates its file to this size. */
const walLimitBytes = 4 * 1024 * 1024;

/** Larger catalogs are checked for damage after the start: the check reads the whole file. */
const largeBytes = 128 * 1024 * 1024;

/**
 * Larger catalogs are opened in place instead of copied to memory; SQLite then leaves its -wal and -shm files beside
 * them.
 */
const maxCopiedBytes = 1024 * 1024 * 1024;

/**
 * Opens the catalog read-only: beside the process that holds the data directory, else as a copy in memory. Throws when
 * the file is missing, damaged or of another schema version.
 */
export function openToRead(root: string): Database.Database {
  const db = openAsItIs(root);
  try {
    expectIntact(db);
    expectVersion(db);
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

function openAsItIs(root: string): Database.Database {
  const file = catalogPath(root);
  const beside = isLocked(lockPath(root)) ? openBeside(file) : undefined;
  if (beside) return beside;
  if (statSync(file).size > maxCopiedBytes) return new Database(file, { readonly: true });
  const copy = copyOf(file);
  // A process may have started, and written, while the file was copied.
  const openedBeside = isLocked(lockPath(root)) ? openBeside(file) : undefined;
  if (!openedBeside) return copy;
  copy.close();
  return openedBeside;
}

/** Returns undefined if SQLite cannot open its shared memory (-shm), as on a read-only file system. */
function openBeside(file: string): Database.Database | undefined {
  let db: Database.Database | undefined;
  try {
    db = new Database(file, { readonly: true, fileMustExist: true });
    db.pragma('user_version');
    return db;
  } catch (error) {
    db?.close();
    if (!/^SQLITE_(READONLY|CANTOPEN)/.test(errorCode(error) ?? '')) throw error;
    return undefined;
  }
}

/** Copies the last committed state of the catalog to memory. An absent or empty file gives an empty catalog. */
export function openInMemory(file: string): Database.Database {
  let db: Database.Database | undefined;
  try {
    const isThere = existsSync(file) && statSync(file).size > 0;
    db = isThere ? copyOf(file) : new Database(':memory:');
    expectIntact(db);
    migrate(db, file);
    return db;
  } catch (error) {
    db?.close();
    throw explain(error, file);
  }
}

/** Whether checking the file for damage would delay the start too much. */
export function isLarge(file: string): boolean {
  const { size } = statSync(file, { throwIfNoEntry: false }) ?? { size: 0 };
  return size > largeBytes;
}

/** `checks`: check the file for damage, unless it is large. Throws errors made by `explain`. */
export function openForWriting(file: string, checks = false): Database.Database {
  const db = new Database(file);
  try {
    // For an existing file this takes effect with the next VACUUM (disk-worker).
    db.pragma('auto_vacuum = INCREMENTAL');
    db.pragma('journal_mode = WAL');
    if (checks && !isLarge(file)) expectIntact(db);
    db.pragma('synchronous = NORMAL');
    // A checkpoint waits for the disk: a worker thread makes them (disk-worker).
    db.pragma('wal_autocheckpoint = 0');
    db.pragma(`journal_size_limit = ${walLimitBytes}`);
    migrate(db, file);
    // SQLite blocks the event loop while it waits for a lock. Writes that stay locked out longer are retried by
    // WriteQueue.
    db.pragma('busy_timeout = 50');
    return db;
  } catch (error) {
    db.close();
    throw explain(error, file);
  }
}
