import type { Connection } from '../connection.ts';
import type { WriteQueue } from '../write-queue.ts';

/** Progress of background work that survives restarts, by name. */
export class NoteTable {
  readonly #queue: WriteQueue;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#queue = connection.queue;
    this.#statements = statementsOf(connection);
  }

  get(name: string): string | undefined {
    return this.#statements.get.get(name)?.value;
  }

  set(name: string, value: string): void {
    this.#queue.do(() => {
      this.#statements.set.run(name, value);
    });
  }
}

function statementsOf(connection: Connection) {
  return {
    get: connection.prepare<[string], { value: string }>('SELECT value FROM notes WHERE name = ?'),
    set: connection.prepare<[string, string]>('INSERT OR REPLACE INTO notes VALUES (?, ?)'),
  };
}
