import type { Clock } from '../util/clock.ts';

/** Counters of pulls and traffic. */
export interface Counts {
  /** Manifests served to clients: pulls that they would have spent without the mirror. */
  clientPulls: number;
  /** Manifests fetched from upstreams: pulls spent. */
  upstreamPulls: number;
  servedBytes: number;
  fetchedBytes: number;
  tokenCalls: number;
  /** 429 answers of upstreams. */
  limited: number;
  /** Seconds in which clients were served stale content during an upstream outage. */
  bridgedSeconds: number;
}

export interface LedgerRow extends Counts {
  /** UTC date: `2026-01-31`. */
  readonly day: string;
  readonly registry: string;
  /** Empty: not attributed to a repo. */
  readonly repo: string;
}

/** Persistence of the ledger. */
export interface LedgerStore {
  /** Adds to the stored rows, in one transaction. */
  add(rows: readonly LedgerRow[]): void;
  /** Keeps the newest `days` days that have rows. */
  prune(days: number): void;
  /** Totals by registry. `bridgedSeconds` are taken from the rows without repo only, so that an outage counts once. */
  totals(): ({ readonly registry: string } & Counts)[];
}

/** Unwritten counts of one repo. Callers increment them in place, and must not hold the entry for long: `flush` discards it. */
export class Entry implements Counts {
  readonly registry: string;
  readonly repo: string;
  clientPulls = 0;
  upstreamPulls = 0;
  servedBytes = 0;
  fetchedBytes = 0;
  tokenCalls = 0;
  limited = 0;
  bridgedSeconds = 0;
  #bridgedAt = -Infinity;

  constructor(registry: string, repo: string) {
    this.registry = registry;
    this.repo = repo;
  }

  /** Counts a stale answer during an outage: adds the time since the last one, if within a minute. `now`: monotonic ms. */
  bridged(now: number): void {
    const since = (now - this.#bridgedAt) / 1000;
    this.bridgedSeconds += since <= longestGapSeconds ? since : 1;
    this.#bridgedAt = now;
  }

  isBridging(now: number): boolean {
    return (now - this.#bridgedAt) / 1000 <= longestGapSeconds;
  }
}

const fields = [
  'clientPulls',
  'upstreamPulls',
  'servedBytes',
  'fetchedBytes',
  'tokenCalls',
  'limited',
  'bridgedSeconds',
] as const satisfies (keyof Counts)[];
const longestGapSeconds = 60;
const maxEntries = 10_000;
const keptDays = 365;

/** Counts by day, registry and repo, collected in memory and written in batches. */
export class Ledger {
  readonly #clock: Clock;
  readonly #store: LedgerStore;
  readonly #onError: (error: unknown) => void;
  readonly #entries = new Map<string, Entry>();
  readonly #totals = new Map<string, Counts>();
  #prunedOn = '';

  constructor(clock: Clock, store: LedgerStore, onError: (error: unknown) => void) {
    this.#clock = clock;
    this.#store = store;
    this.#onError = onError;
    for (const { registry, ...counts } of store.totals()) this.#totals.set(registry, counts);
  }

  /** The entry of a repo. `key`: `registry/repo`, if the caller has it: every cache hit comes here. */
  of(registry: string, repo: string, key = `${registry}/${repo}`): Entry {
    const known = this.#entries.get(key);
    if (known) return known;
    if (this.#entries.size >= maxEntries) this.flush();
    const entry = new Entry(registry, repo);
    this.#entries.set(key, entry);
    return entry;
  }

  /** Writes the collected counts; keeps them if that fails. */
  flush(): void {
    const day = dayOf(this.#clock.now());
    const rows = [...this.#entries.values()].filter(isUsed).map((entry) => {
      // Clients can request any repo name: only repos with content get a row of their own.
      const isKnown = entry.clientPulls + entry.upstreamPulls + entry.servedBytes + entry.fetchedBytes > 0;
      return { ...pick(entry), day, registry: entry.registry, repo: isKnown ? entry.repo : '' };
    });
    try {
      if (rows.length > 0) this.#store.add(rows);
    } catch (error) {
      this.#onError(error);
      if (this.#entries.size >= maxEntries) this.#entries.clear();
      return;
    }
    for (const row of rows) add(this.#totalOf(row.registry), totalled(row));
    const now = this.#clock.monotonic();
    for (const [key, entry] of this.#entries) {
      if (entry.isBridging(now)) clear(entry);
      else this.#entries.delete(key);
    }
    if (this.#prunedOn !== day) this.#prune(day);
  }

  #prune(day: string): void {
    try {
      this.#store.prune(keptDays);
      this.#prunedOn = day;
      this.#totals.clear();
      for (const { registry, ...counts } of this.#store.totals()) this.#totals.set(registry, counts);
    } catch (error) {
      this.#onError(error);
    }
  }

  /** Totals of the last year by registry, with unwritten counts. */
  totals(): [registry: string, item: keyof Counts, total: number][] {
    const totals = new Map([...this.#totals].map(([registry, counts]) => [registry, { ...counts }]));
    for (const entry of this.#entries.values()) {
      const total = totals.get(entry.registry) ?? zero();
      totals.set(entry.registry, total);
      add(total, totalled(entry));
    }
    return [...totals].flatMap(([registry, counts]) =>
      fields.map((field): [string, keyof Counts, number] => [registry, field, counts[field]]),
    );
  }

  #totalOf(registry: string): Counts {
    const total = this.#totals.get(registry) ?? zero();
    this.#totals.set(registry, total);
    return total;
  }
}

function isUsed(counts: Counts): boolean {
  return fields.some((field) => counts[field] > 0);
}

/** What a row adds to its registry's total: `bridgedSeconds` count in the row without repo only. */
function totalled(counts: Counts & { readonly repo: string }): Counts {
  return counts.repo === '' ? counts : { ...pick(counts), bridgedSeconds: 0 };
}

function pick(counts: Counts): Counts {
  const picked = zero();
  add(picked, counts);
  return picked;
}

function add(to: Counts, counts: Counts): void {
  for (const field of fields) to[field] += counts[field];
}

function clear(counts: Counts): void {
  for (const field of fields) counts[field] = 0;
}

function zero(): Counts {
  return {
    clientPulls: 0,
    upstreamPulls: 0,
    servedBytes: 0,
    fetchedBytes: 0,
    tokenCalls: 0,
    limited: 0,
    bridgedSeconds: 0,
  };
}

function dayOf(ms: number): string {
  return new Date(ms).toISOString().slice(0, 10);
}
