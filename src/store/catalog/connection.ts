import type Database from 'better-sqlite3';
import { renameSync, rmSync } from 'node:fs';
import { openForWriting, openInMemory } from './catalog-file.ts';
import { Damage } from './damage.ts';
import { Statement } from './statement.ts';
import { WriteQueue } from './write-queue.ts';

export interface ConnectionOptions {
  /** A database that is already open, for reading alone; closed with the connection. */
  readonly reader?: Database.Database;
  /** A copy of the file as it was last committed; nothing that is written to it reaches the disk. */
  readonly inMemory?: boolean;
  /** A write that had to wait could not be done in the end. */
  readonly onLostWrite?: (error: unknown) => void;
  /**
   * The catalog was found to be damaged while in use. From then on nothing is written, and what cannot be read counts as
   * absent. Without this each access to a damaged page throws.
   */
  readonly onDamaged?: (error: unknown) => void;
}

/** The open SQLite database of the catalog, with its prepared statements. */
export class Connection {
  /** Writes wait in it while another connection has the write lock; reads do not see them before they are done. */
  readonly queue: WriteQueue;
  readonly #damage: Damage;
  readonly #statements: { prepareFor(db: Database.Database): void }[] = [];
  #db: Database.Database;

  /** Throws when the file is damaged, locked by another program, or of a newer version. */
  constructor(file: string, options: ConnectionOptions) {
    const { reader, inMemory = false, onLostWrite = (): void => undefined, onDamaged } = options;
    this.queue = new WriteQueue(onLostWrite, (work) => this.#db.transaction(work).immediate());
    this.#damage = new Damage(file, onDamaged);
    this.#db = reader ?? (inMemory ? openInMemory(file) : openForWriting(file, true));
  }

  /** To be called once for each statement, not for each execution. */
  prepare<Params extends unknown[], Row = unknown>(sql: string): Statement<Params, Row> {
    const statement = new Statement<Params, Row>(this.#db, sql, this.#damage);
    this.#statements.push(statement);
    return statement;
  }

  /** Everything that `work` writes, or nothing of it. */
  transaction<T>(work: () => T): T {
    return this.#db.transaction(work)();
  }

  /** Notes damage that was found by other means, as in a worker thread. */
  damaged(error: unknown): void {
    this.#damage.found(error);
  }

  get isDamaged(): boolean {
    return this.#damage.error !== undefined;
  }

  /** Throws when it is damaged: for work that must not go on with a part of the rows. */
  expectUndamaged(): void {
    if (this.#damage.error) throw this.#damage.error;
  }

  /** The database's size in bytes, free pages included; and how many bytes its free pages are. */
  size(): { bytes: number; free: number } {
    const number = (name: string): number => this.#db.pragma(name, { simple: true }) as number;
    const page = number('page_size');
    return { bytes: number('page_count') * page, free: number('freelist_count') * page };
  }

  /**
   * Goes on with the file in place of the copy in memory, whose writes are lost.
   * Throws when it cannot be opened: the copy stays then.
   */
  openFile(file: string): void {
    const db = openForWriting(file);
    this.#db.close();
    this.#use(db);
  }

  /** For a file that was deleted while it is open: writes what it held to a new file, and goes on with that. */
  async rescue(file: string): Promise<void> {
    await this.queue.during(async () => {
      const copy = `${file}.rescued`;
      await this.#db.backup(copy);
      // No await between closing and opening: nothing is read in between.
      this.#db.close();
      for (const ending of ['-wal', '-shm']) rmSync(file + ending, { force: true });
      renameSync(copy, file);
      this.#use(openForWriting(file));
    });
  }

  #use(db: Database.Database): void {
    this.#db = db;
    for (const statement of this.#statements) statement.prepareFor(db);
  }

  /** Does the writes that wait, as far as possible, and closes the database. */
  close(): void {
    this.queue.giveUp();
    this.#db.close();
  }
}
