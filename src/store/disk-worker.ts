import Database from 'better-sqlite3';
import { closeSync, fdatasyncSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { answerCalls } from '../util/worker.ts';
import { expectIntact } from './catalog/damage.ts';
import { prune, type Prune } from './catalog/prune.ts';

/** Blocking disk access, on a thread of its own to keep the event loop free. */

function sync(path: string, how: (fd: number) => void): void {
  const fd = openSync(path, 'r');
  try {
    how(fd);
  } finally {
    closeSync(fd);
  }
}

const maxPages = 2 ** 31 - 1;
/** Short: calls to this thread queue up behind one that waits for the lock. */
const busyMs = 100;
const catalogs = new Map<string, Database.Database>();

function catalogOf(file: string): Database.Database {
  const cached = catalogs.get(file);
  if (cached) return cached;
  const db = new Database(file, { timeout: busyMs, fileMustExist: true });
  db.pragma('synchronous = NORMAL');
  catalogs.set(file, db);
  return db;
}

function withDatabase(file: string, options: Database.Options, work: (db: Database.Database) => void): void {
  const db = new Database(file, { ...options, fileMustExist: true });
  try {
    work(db);
  } finally {
    db.close();
  }
}

answerCalls({
  /** Syncs a complete file and moves it to its final name, durably. */
  publish({ from, to }: { from: string; to: string }) {
    sync(from, fdatasyncSync);
    const directory = dirname(to);
    if (mkdirSync(directory, { recursive: true }) !== undefined) sync(dirname(directory), fsyncSync);
    renameSync(from, to);
    sync(directory, fsyncSync);
  },
  /** Syncs an open file and its directory entry. */
  datasync({ fd, directory }: { fd: number; directory: string }) {
    fdatasyncSync(fd);
    sync(directory, fsyncSync);
  },
  /** Replaces the backup atomically. A damaged catalog is not backed up: the last backup may be intact. */
  async backup({ file, to }: { file: string; to: string }) {
    const db = new Database(file, { readonly: true });
    try {
      // In one step: SQLite restarts a backup when another connection writes in between.
      await db.backup(`${to}.new`, { progress: () => maxPages });
    } finally {
      db.close();
    }
    try {
      // With a rollback journal the backup can be read without -wal and -shm files.
      withDatabase(`${to}.new`, {}, (copy) => {
        copy.pragma('journal_mode = DELETE');
        expectIntact(copy);
      });
    } catch (error) {
      rmSync(`${to}.new`);
      throw error;
    }
    sync(`${to}.new`, fdatasyncSync);
    renameSync(`${to}.new`, to);
  },
  /** Throws when the catalog is damaged. */
  check({ file }: { file: string }) {
    withDatabase(file, { readonly: true }, expectIntact);
  },
  prune(what: Prune) {
    return prune(catalogOf(what.file), what);
  },
  /** Passive: blocks neither readers nor writers. */
  checkpoint({ file }: { file: string }) {
    catalogOf(file).pragma('wal_checkpoint(PASSIVE)');
  },
  /**
   * Frees up to `pages` free pages, once the log is checkpointed. Nothing may be written meanwhile. Returns the number
   * of free pages left.
   */
  shrink({ file, pages }: { file: string; pages: number }) {
    const db = catalogOf(file);
    const incremental = 2;
    if (db.pragma('auto_vacuum', { simple: true }) === incremental) db.pragma(`incremental_vacuum(${pages})`);
    else {
      // A file of an older version must be rewritten once.
      db.pragma('auto_vacuum = INCREMENTAL');
      db.exec('VACUUM');
    }
    return db.pragma('freelist_count', { simple: true });
  },
  /** Closes the connection to a replaced file. */
  forget({ file }: { file: string }) {
    catalogs.get(file)?.close();
    catalogs.delete(file);
  },
  /** Checkpoints and truncates the log. Nothing may be written meanwhile; does not wait for readers. */
  truncate({ file }: { file: string }) {
    catalogOf(file).pragma('wal_checkpoint(TRUNCATE)');
  },
});
