import Database from 'better-sqlite3';
import { closeSync, fdatasyncSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { answerCalls } from '../util/worker.ts';
import { expectWhole } from './catalog/damage.ts';
import { prune, type Prune } from './catalog/prune.ts';

/** What waits for the disk: done synchronously on a thread of its own, so that nothing else waits with it. */

function sync(path: string, how: (fd: number) => void): void {
  const fd = openSync(path, 'r');
  try {
    how(fd);
  } finally {
    closeSync(fd);
  }
}

const mostPages = 2 ** 31 - 1;
/** Others wait for what waits here. */
const busyMs = 100;
const catalogs = new Map<string, Database.Database>();

function catalogOf(file: string): Database.Database {
  const known = catalogs.get(file);
  if (known) return known;
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
  /** Makes a whole file visible under its final name, for good. */
  publish({ from, to }: { from: string; to: string }) {
    sync(from, fdatasyncSync);
    const directory = dirname(to);
    if (mkdirSync(directory, { recursive: true }) !== undefined) sync(dirname(directory), fsyncSync);
    renameSync(from, to);
    sync(directory, fsyncSync);
  },
  /** Makes what has been written to an open file last, and its name. */
  datasync({ fd, directory }: { fd: number; directory: string }) {
    fdatasyncSync(fd);
    sync(directory, fsyncSync);
  },
  /** A copy that is whole at every moment; of a damaged catalog none, since the last one may be sound. */
  async backup({ file, to }: { file: string; to: string }) {
    const db = new Database(file, { readonly: true });
    try {
      // In one step: it would begin anew whenever somebody writes in between.
      await db.backup(`${to}.new`, { progress: () => mostPages });
    } finally {
      db.close();
    }
    try {
      // Without a write-ahead log it can be read with nothing beside it.
      withDatabase(`${to}.new`, {}, (copy) => {
        copy.pragma('journal_mode = DELETE');
        expectWhole(copy);
      });
    } catch (error) {
      rmSync(`${to}.new`);
      throw error;
    }
    sync(`${to}.new`, fdatasyncSync);
    renameSync(`${to}.new`, to);
  },
  /** Throws when it is damaged. */
  check({ file }: { file: string }) {
    withDatabase(file, { readonly: true }, expectWhole);
  },
  prune(what: Prune) {
    return prune(catalogOf(what.file), what);
  },
  /** Passive: it waits for no reader, and no writer waits for it. */
  checkpoint({ file }: { file: string }) {
    catalogOf(file).pragma('wal_checkpoint(PASSIVE)');
  },
  /**
   * Gives up to so many free pages back to the file system, once the log is cut: nobody may write meanwhile. Resolves to how many
   * are left.
   */
  shrink({ file, pages }: { file: string; pages: number }) {
    const db = catalogOf(file);
    const incremental = 2;
    if (db.pragma('auto_vacuum', { simple: true }) === incremental) db.pragma(`incremental_vacuum(${pages})`);
    else {
      // A file of an older version, written anew once.
      db.pragma('auto_vacuum = INCREMENTAL');
      db.exec('VACUUM');
    }
    return db.pragma('freelist_count', { simple: true });
  },
  /** Another file has taken its place. */
  forget({ file }: { file: string }) {
    catalogs.get(file)?.close();
    catalogs.delete(file);
  },
  /** Copies what is left of the log, and cuts it to nothing: nobody may write meanwhile, and whoever reads is not waited for. */
  truncate({ file }: { file: string }) {
    catalogOf(file).pragma('wal_checkpoint(TRUNCATE)');
  },
});
