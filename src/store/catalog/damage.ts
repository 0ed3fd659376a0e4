import Database from 'better-sqlite3';
import { errorCode } from '../../util/errors.ts';

/** The codes by which SQLite reports damage. */
const corruptCode = /^SQLITE_(NOTADB|CORRUPT)/;

/** Whether SQLite reports, as this error or as its cause, that the file is damaged. */
export function isCorrupt(error: unknown): boolean {
  for (let each = error; each instanceof Error; each = each.cause)
    if (corruptCode.test(errorCode(each) ?? '')) return true;
  return false;
}

/** Throws when it is damaged. Reads all of it: 1.3 ms for a thousand blobs, when the kernel has it in memory. */
export function expectWhole(db: Database.Database): void {
  const found = db.pragma('quick_check(1)', { simple: true });
  if (found !== 'ok') throw new Database.SqliteError(String(found), 'SQLITE_CORRUPT');
}

/** The error with what an operator can do about it; one that says nothing about the file is returned as it is. */
export function explain(error: unknown, file: string): unknown {
  const code = errorCode(error) ?? '';
  const remedy = corruptCode.test(code)
    ? 'it is damaged: "layercache store rebuild" makes a new one from its backup and the files'
    : code.startsWith('SQLITE_BUSY')
      ? 'another program has it locked: end that one'
      : code === 'SQLITE_FULL' || code.startsWith('SQLITE_IOERR')
        ? 'the disk is full or cannot be written: make some room, the files under ingest/ and quarantine/ may go'
        : code === 'SQLITE_ERROR'
          ? 'its tables are not those of this program: "layercache store rebuild" makes new ones from the files'
          : code === 'SQLITE_READONLY' || code.startsWith('SQLITE_CANTOPEN')
            ? 'it cannot be written: give this user the directory'
            : undefined;
  if (remedy === undefined) return error;
  return new Error(`${file} cannot be used (${code}): ${remedy}`, { cause: error });
}

/**
 * Whether an open catalog was found to be damaged. With `onFound` the catalog stays in use then: what cannot be read counts as
 * absent, and nothing is written any more, so that no request fails. Without it each access throws.
 */
export class Damage {
  readonly #file: string;
  readonly #onFound: ((error: Error) => void) | undefined;
  #error: Error | undefined;

  constructor(file: string, onFound: ((error: Error) => void) | undefined) {
    this.#file = file;
    this.#onFound = onFound;
  }

  /** What was found, with what to do about it; undefined: the catalog is not known to be damaged. */
  get error(): Error | undefined {
    return this.#error;
  }

  get stopsWrites(): boolean {
    return this.#error !== undefined && this.#onFound !== undefined;
  }

  /** Notes the first damage that is found. */
  found(error: unknown): void {
    if (this.#error) return;
    this.#error = explain(error, this.#file) as Error;
    this.#onFound?.(this.#error);
  }

  /** After a read that failed: throws the error again, unless it is damage with which the catalog stays in use. */
  afterRead(error: unknown): void {
    if (!this.#onFound || !isCorrupt(error)) throw error;
    this.found(error);
  }

  /** After a write that failed: notes damage. The caller throws the error again. */
  afterWrite(error: unknown): void {
    if (this.#onFound && isCorrupt(error)) this.found(error);
  }
}
