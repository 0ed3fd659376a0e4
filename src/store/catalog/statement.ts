import type Database from 'better-sqlite3';
import type { Damage } from './damage.ts';

const nothingWritten: Database.RunResult = { changes: 0, lastInsertRowid: 0 };

/** A prepared statement that stays valid when its connection goes on with another database. */
export class Statement<Params extends unknown[], Row> {
  readonly #sql: string;
  readonly #damage: Damage;
  #prepared: Database.Statement<Params, Row>;

  constructor(db: Database.Database, sql: string, damage: Damage) {
    this.#sql = sql;
    this.#damage = damage;
    this.#prepared = db.prepare<Params, Row>(sql);
  }

  /** Prepares it for another database. */
  prepareFor(db: Database.Database): void {
    this.#prepared = db.prepare<Params, Row>(this.#sql);
  }

  /** The first row. Undefined too when damage keeps it from being read. */
  get(...params: Params): Row | undefined {
    try {
      return this.#prepared.get(...params);
    } catch (error) {
      this.#damage.afterRead(error);
      return undefined;
    }
  }

  /** All rows. None when damage keeps one of them from being read. */
  all(...params: Params): Row[] {
    try {
      return this.#prepared.all(...params);
    } catch (error) {
      this.#damage.afterRead(error);
      return [];
    }
  }

  /** Writes. Changes nothing once the catalog is known to be damaged, unless every access is to throw. */
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
