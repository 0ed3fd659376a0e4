import Database from 'better-sqlite3';
import { existsSync, statSync } from 'node:fs';
import { errorCode } from '../../util/errors.ts';
import { catalogPath, lockPath } from '../disk/layout.ts';
import { isLocked } from '../disk/lock.ts';
import { copyOf } from './copy-of-file.ts';
import { expectWhole, explain } from './damage.ts';
import { expectVersion, migrate } from './schema.ts';

/** A write-ahead log is cut to this when it is begun anew. */
const walLimitBytes = 4 * 1024 * 1024;

/** A larger file is checked for damage after the start, since reading it takes longer than a start may. */
const largeBytes = 128 * 1024 * 1024;

/** What is larger is more than memory may have: it is opened where it lies, and what SQLite needs for that is left beside it. */
const mostCopiedBytes = 1024 * 1024 * 1024;

/**
 * The catalog for whoever only reads: beside the process that has the store, else a copy in memory. Nothing is written. Throws
 * when there is none, and when it is damaged or another version's.
 */
export function openToRead(root: string): Database.Database {
  const db = openAsItIs(root);
  try {
    expectWhole(db);
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
  if (statSync(file).size > mostCopiedBytes) return new Database(file, { readonly: true });
  const copy = copyOf(file);
  // A process that has just begun may have written while it was read.
  const late = isLocked(lockPath(root)) ? openBeside(file) : undefined;
  if (!late) return copy;
  copy.close();
  return late;
}

/** Undefined: where nothing can be written, not even what processes have in common can be opened. */
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

/** A copy in memory of the catalog as it was last committed: what is written to it is lost with it. */
export function openInMemory(file: string): Database.Database {
  let db: Database.Database | undefined;
  try {
    // Without a file it is empty.
    const isThere = existsSync(file) && statSync(file).size > 0;
    db = isThere ? copyOf(file) : new Database(':memory:');
    expectWhole(db);
    migrate(db, file);
    return db;
  } catch (error) {
    db?.close();
    throw explain(error, file);
  }
}

/** Whether checking it for damage takes too long for a start: that is done after it. */
export function isLarge(file: string): boolean {
  const { size } = statSync(file, { throwIfNoEntry: false }) ?? { size: 0 };
  return size > largeBytes;
}

/** `checks`: the file is checked for damage first, unless it is large. Throws what `explain` makes of the fault. */
export function openForWriting(file: string, checks = false): Database.Database {
  const db = new Database(file);
  try {
    // Of a file that is there it changes nothing before the next VACUUM (disk-worker).
    db.pragma('auto_vacuum = INCREMENTAL');
    db.pragma('journal_mode = WAL');
    if (checks && !isLarge(file)) expectWhole(db);
    db.pragma('synchronous = NORMAL');
    // Checkpoints wait for the disk: a worker thread makes them (disk-worker).
    db.pragma('wal_autocheckpoint = 0');
    db.pragma(`journal_size_limit = ${walLimitBytes}`);
    migrate(db, file);
    // All requests wait meanwhile: what another program has locked for longer is written later (WriteQueue).
    db.pragma('busy_timeout = 50');
    return db;
  } catch (error) {
    db.close();
    throw explain(error, file);
  }
}
