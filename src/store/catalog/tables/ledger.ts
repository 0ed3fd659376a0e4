import type { Counts, LedgerRow, LedgerStore } from '../../../telemetry/ledger.ts';
import type { Connection } from '../connection.ts';

/** Client and upstream pulls, bytes and quota savings, by day, registry and repo. */
export class LedgerTable implements LedgerStore {
  readonly #connection: Connection;
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#connection = connection;
    this.#statements = statementsOf(connection);
  }

  add(rows: readonly LedgerRow[]): void {
    this.#connection.queue.do(() => {
      this.#connection.transaction(() => {
        for (const row of rows) this.#statements.add.run(row);
      });
    });
  }

  /** Keeps the last `days` days that have rows. The clock is not used: a wrong clock would remove too much. */
  prune(days: number): void {
    this.#connection.queue.do(() => {
      this.#statements.prune.run(days);
    });
  }

  totals(): ({ readonly registry: string } & Counts)[] {
    return this.#statements.totals.all();
  }
}

function statementsOf(connection: Connection) {
  return {
    add: connection.prepare<[LedgerRow]>(
      `INSERT INTO ledger VALUES (@day, @registry, @repo, @clientPulls, @upstreamPulls, @servedBytes, @fetchedBytes,
         @tokenCalls, @limited, @bridgedSeconds)
       ON CONFLICT DO UPDATE SET
         client_pulls = client_pulls + excluded.client_pulls,
         upstream_pulls = upstream_pulls + excluded.upstream_pulls,
         served_bytes = served_bytes + excluded.served_bytes,
         fetched_bytes = fetched_bytes + excluded.fetched_bytes,
         token_calls = token_calls + excluded.token_calls,
         limited = limited + excluded.limited,
         bridged_seconds = bridged_seconds + excluded.bridged_seconds`,
    ),
    prune: connection.prepare<[number]>(
      `DELETE FROM ledger WHERE day < (SELECT day FROM (SELECT DISTINCT day FROM ledger ORDER BY day DESC LIMIT ?)
       ORDER BY day LIMIT 1)`,
    ),
    totals: connection.prepare<[], { registry: string } & Counts>(
      `SELECT registry, sum(client_pulls) AS clientPulls, sum(upstream_pulls) AS upstreamPulls,
         sum(served_bytes) AS servedBytes, sum(fetched_bytes) AS fetchedBytes, sum(token_calls) AS tokenCalls,
         sum(limited) AS limited,
         sum(iif(repo = '', bridged_seconds, 0)) AS bridgedSeconds
       FROM ledger GROUP BY registry`,
    ),
  };
}
