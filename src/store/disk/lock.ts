import Database from 'better-sqlite3';
import { errorCode } from '../../util/errors.ts';

/** Another process has the data directory. */
export class LockedError extends Error {
  override readonly name = 'LockedError';
}

/** Whoever looks whether it is locked holds it for less than that. */
const lookMs = 100;

/** Whether a process has the data directory: looked at without writing anything. */
export function isLocked(file: string): boolean {
  let db: Database.Database | undefined;
  try {
    db = new Database(file, { readonly: true, fileMustExist: true, timeout: 0 });
    db.pragma('schema_version');
    return false;
  } catch (error) {
    return errorCode(error)?.startsWith('SQLITE_BUSY') === true;
  } finally {
    db?.close();
  }
}

/**
 * Makes this process the only one on a data directory. A second SQLite file held by an open exclusive transaction: the
 * kernel lets it go with the process, kill -9 included. Returns the release; throws `LockedError` when another process holds it.
 */
export function lockDirectory(file: string): () => void {
  const db = new Database(file, { timeout: lookMs });
  try {
    // Nothing is written, and so nothing needs room on a full disk.
    db.pragma('journal_mode = MEMORY');
    db.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    db.close();
    if (errorCode(error) === 'SQLITE_NOTADB')
      throw new Error(`${file} is not a lock of layercache: delete it, nothing is kept in it`, {
        cause: error,
      });
    if (errorCode(error) !== 'SQLITE_BUSY') throw error;
    throw new LockedError(
      `${file} is locked: another layercache is running on this data directory. Stop it, or give this one its own store.path`,
      { cause: error },
    );
  }
  return () => db.close();
}
