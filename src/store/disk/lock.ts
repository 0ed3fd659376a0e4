import Database from 'better-sqlite3';
import { errorCode } from '../../util/errors.ts';

/** Another process holds the data directory. */
export class LockedError extends Error {
  override readonly name = 'LockedError';
}

/** `isLocked` in another process holds the lock for less than this. */
const lockTimeoutMs = 100;

/** Whether a process holds the data directory. Writes nothing. */
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
 * Locks the data directory for this process by an exclusive transaction on a second SQLite file: the kernel releases
 * it with the process, kill -9 included. Returns the release. Throws `LockedError`.
 */
export function lockDirectory(file: string): () => void {
  const db = new Database(file, { timeout: lockTimeoutMs });
  try {
    // Writes nothing, and so works on a full disk.
    db.pragma('journal_mode = MEMORY');
    db.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    db.close();
    if (errorCode(error) === 'SQLITE_NOTADB')
      throw new Error(`${file} is not a lock of layercache: delete it, it contains no data`, {
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
