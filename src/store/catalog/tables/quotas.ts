import type { QuotaState } from '../../../util/quota-state.ts';
import type { Connection } from '../connection.ts';
import type { WriteQueue } from '../write-queue.ts';

/** Pull quota of each account, as upstreams last reported it. */
export class QuotaTable {
  readonly #queue: WriteQueue;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#queue = connection.queue;
    this.#statements = statementsOf(connection);
  }

  get(registry: string, account: string): QuotaState | undefined {
    return this.#statements.get.get(registry, account);
  }

  set(registry: string, account: string, row: QuotaState): void {
    this.#queue.do(() => {
      const { limit, remaining, windowMs, source, risenAt, observedAt, backAt } = row;
      const { set } = this.#statements;
      set.run(registry, account, limit, remaining, windowMs, source, risenAt, observedAt, backAt);
    });
  }

  remove(registry: string, account: string): void {
    this.#queue.do(() => {
      this.#statements.remove.run(registry, account);
    });
  }
}

function statementsOf(connection: Connection) {
  return {
    get: connection.prepare<[string, string], QuotaState>(
      `SELECT pull_limit AS "limit", remaining, window_ms AS windowMs, source, risen_at AS risenAt,
         observed_at AS observedAt, back_at AS backAt
       FROM quotas WHERE registry = ? AND account = ?`,
    ),
    set: connection.prepare('INSERT OR REPLACE INTO quotas VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)'),
    remove: connection.prepare<[string, string]>('DELETE FROM quotas WHERE registry = ? AND account = ?'),
  };
}
