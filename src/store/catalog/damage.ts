import Database from 'better-sqlite3';
import { errorCode } from '../../util/errors.ts';

/** SQLite error codes that report damage. */
const corruptCode = /^SQLITE_(NOTADB|CORRUPT)/;

/** Whether the error, or one of its causes, is SQLite reporting a damaged file. */
export function isCorrupt(error: unknown): boolean {
  for (let each = error; each instanceof Error; each = each.cause)
    if (corruptCode.test(errorCode(each) ?? '')) return true;
  return false;
}

/** Throws when the database is damaged. Reads the whole file: 1.3 ms per thousand blobs, if cached by the kernel. */
export function expectIntact(db: Database.Database): void {
  const found = db.pragma('quick_check(1)', { simple: true });
  if (found !== 'ok') throw new Database.SqliteError(String(found), 'SQLITE_CORRUPT');
}

/** Adds a remedy to errors about the file; returns other errors unchanged. */
export function explain(error: unknown, file: string): unknown {
  const code = errorCode(error) ?? '';
  const remedy = corruptCode.test(code)
    ? 'it is damaged: "layercache store rebuild" makes a new one from its backup and the files'
    : code.startsWith('SQLITE_BUSY')
      ? 'another program has it locked: stop that program'
      : code === 'SQLITE_FULL' || code.startsWith('SQLITE_IOERR')
        ? 'the disk is full or cannot be written: free some space; the files under ingest/ and quarantine/ may be deleted'
        : code === 'SQLITE_ERROR'
          ? 'its tables are not those of layercache: "layercache store rebuild" makes new ones from the files'
          : code === 'SQLITE_READONLY' || code.startsWith('SQLITE_CANTOPEN')
            ? 'it is not writable: give this user the data directory'
            : undefined;
  if (remedy === undefined) return error;
  return new Error(`${file} cannot be used (${code}): ${remedy}`, { cause: error });
}

/**
 * Damage found in an open catalog. With `onFound` the catalog stays in use: unreadable rows count as absent and
 * nothing is written, so that no request fails. Without it each access throws.
 */
export class Damage {
  readonly #file: string;
  readonly #onFound: ((error: Error) => void) | undefined;
  #error: Error | undefined;

  constructor(file: string, onFound: ((error: Error) => void) | undefined) {
    this.#file = file;
    this.#onFound = onFound;
  }

  /** The error with its remedy; undefined: no damage is known. */
  get error(): Error | undefined {
    return this.#error;
  }

  get stopsWrites(): boolean {
    return this.#error !== undefined && this.#onFound !== undefined;
  }

  /** Records the first damage found. */
  record(error: unknown): void {
    if (this.#error) return;
    this.#error = explain(error, this.#file) as Error;
    this.#onFound?.(this.#error);
  }

  /** Call after a failed read. Throws the error again, unless the catalog stays in use in spite of it. */
  afterRead(error: unknown): void {
    if (!this.#onFound || !isCorrupt(error)) throw error;
    this.record(error);
  }

  /** Call after a failed write. Records damage; the caller throws the error again. */
  afterWrite(error: unknown): void {
    if (this.#onFound && isCorrupt(error)) this.record(error);
  }
}
