import type Database from 'better-sqlite3';
import { renameSync, rmSync } from 'node:fs';
import { openForWriting, openInMemory } from './catalog-file.ts';
import { Damage } from './damage.ts';
import { Statement } from './statement.ts';
import { WriteQueue } from './write-queue.ts';

export interface ConnectionOptions {
  /** An open read-only database; closed with the connection. */
  readonly reader?: Database.Database;
  /** Open a copy of the last committed state; writes do not reach the disk. */
  readonly inMemory?: boolean;
  /** Called for each deferred write that failed or was dropped. */
  readonly onLostWrite?: (error: unknown) => void;
  /**
   * Called when damage is found. From then on nothing is written, and unreadable rows count as absent. Without it,
   * access to a damaged page throws.
   */
  readonly onDamaged?: (error: unknown) => void;
}

/** The open SQLite database and its prepared statements. */
export class Connection {
  /** Reads do not see writes that still wait. */
  readonly queue: WriteQueue;
  readonly #damage: Damage;
  readonly #statements: { prepareFor(db: Database.Database): void }[] = [];
  #db: Database.Database;

  /** Throws when the file is damaged, locked by another program, or of a newer schema version. */
  constructor(file: string, options: ConnectionOptions) {
    const { reader, inMemory = false, onLostWrite = (): void => undefined, onDamaged } = options;
    this.queue = new WriteQueue(onLostWrite, (work) => this.#db.transaction(work).immediate());
    this.#damage = new Damage(file, onDamaged);
    this.#db = reader ?? (inMemory ? openInMemory(file) : openForWriting(file, true));
  }

  /** Call once per statement, not per execution. */
  prepare<Params extends unknown[], Row = unknown>(sql: string): Statement<Params, Row> {
    const statement = new Statement<Params, Row>(this.#db, sql, this.#damage);
    this.#statements.push(statement);
    return statement;
  }

  /** Commits all writes of `work`, or none if it throws. */
  transaction<T>(work: () => T): T {
    return this.#db.transaction(work)();
  }

  /** Records damage found elsewhere, as by a worker thread. */
  recordDamage(error: unknown): void {
    this.#damage.record(error);
  }

  get isDamaged(): boolean {
    return this.#damage.error !== undefined;
  }

  /** Throws when damage is known: for work that needs all rows. */
  expectUndamaged(): void {
    if (this.#damage.error) throw this.#damage.error;
  }

  /** Bytes of the database, free pages included, and bytes of its free pages. */
  size(): { bytes: number; free: number } {
    const number = (name: string): number => this.#db.pragma(name, { simple: true }) as number;
    const page = number('page_size');
    return { bytes: number('page_count') * page, free: number('freelist_count') * page };
  }

  /**
   * Replaces the copy in memory, and its writes, by the file. Throws when the file cannot be opened; the copy then
   * stays in use.
   */
  openFile(file: string): void {
    const db = openForWriting(file);
    this.#db.close();
    this.#use(db);
  }

  /** Call if the open file was deleted: writes the database to a new file and uses that. */
  async rescue(file: string): Promise<void> {
    await this.queue.pauseDuring(async () => {
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

  /** Does the waiting writes, as far as possible, and closes the database. */
  close(): void {
    this.queue.giveUp();
    this.#db.close();
  }
}
