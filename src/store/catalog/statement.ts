import type Database from 'better-sqlite3';
import type { Damage } from './damage.ts';

const nothingWritten: Database.RunResult = { changes: 0, lastInsertRowid: 0 };

/** A prepared statement that can be moved to another database. */
export class Statement<Params extends unknown[], Row> {
  readonly #sql: string;
  readonly #damage: Damage;
  #prepared: Database.Statement<Params, Row>;

  constructor(db: Database.Database, sql: string, damage: Damage) {
    this.#sql = sql;
    this.#damage = damage;
    this.#prepared = db.prepare<Params, Row>(sql);
  }

  prepareFor(db: Database.Database): void {
    this.#prepared = db.prepare<Params, Row>(this.#sql);
  }

  /** The first row; undefined also if damage makes it unreadable. */
  get(...params: Params): Row | undefined {
    try {
      return this.#prepared.get(...params);
    } catch (error) {
      this.#damage.afterRead(error);
      return undefined;
    }
  }

  /** All rows; none if damage makes one of them unreadable. */
  all(...params: Params): Row[] {
    try {
      return this.#prepared.all(...params);
    } catch (error) {
      this.#damage.afterRead(error);
      return [];
    }
  }

  /** Writes. Does nothing once damage is known, if the catalog stays in use in spite of it. */
  run(...params: Params): Database.RunResult {
    if (this.#damage.stopsWrites) return nothingWritten;
    try {
      return this.#prepared.run(...params);
    } catch (error) {
      this.#damage.afterWrite(error);
      throw error;
    }
  }
}
