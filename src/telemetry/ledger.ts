import type { Clock } from '../util/clock.ts';

/** What pulls have cost and saved. */
export interface Counts {
  /** Manifests that clients got: what they would have spent without us. */
  clientPulls: number;
  /** Manifests that upstreams gave: what we have spent. */
  upstreamPulls: number;
  servedBytes: number;
  fetchedBytes: number;
  tokenCalls: number;
  /** Answers 429 of upstreams. */
  limited: number;
  /** Seconds in which clients were served though the upstream could not be asked. */
  bridgedSeconds: number;
}

export interface LedgerRow extends Counts {
  /** Of the UTC calendar: `2026-01-31`. */
  readonly day: string;
  readonly registry: string;
  /** Empty: what cannot be told by repo. */
  readonly repo: string;
}

/** Where the ledger is kept. */
export interface LedgerStore {
  /** Adds to what is there, all or nothing. */
  add(rows: readonly LedgerRow[]): void;
  /** Keeps so many days that are in it, the newest. */
  prune(days: number): void;
  /** By registry; an outage counts once, however many repos were served in it. */
  totals(): ({ readonly registry: string } & Counts)[];
}

/** The part of one repo that is not written down yet; to be counted up in place, and not to be kept for long. */
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

  /** Served while the upstream could not be asked: the time since the last such answer counts, up to a minute. */
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

/** What was spent and what was saved, by day, registry and repo: gathered here, written in batches. */
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

  /** `key`: registry and repo in one, if the caller has it at hand; this is on the path of every hit. */
  of(registry: string, repo: string, key = `${registry}/${repo}`): Entry {
    const known = this.#entries.get(key);
    if (known) return known;
    if (this.#entries.size >= maxEntries) this.flush();
    const entry = new Entry(registry, repo);
    this.#entries.set(key, entry);
    return entry;
  }

  /** Writes down what has been gathered; what cannot be written is gathered further. */
  flush(): void {
    const day = dayOf(this.#clock.now());
    const rows = [...this.#entries.values()].filter(isUsed).map((entry) => {
      // A client can name any repo; only what was there gets a row of its own.
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

  /** Of the last year, by registry, with what is not written down yet. */
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

/** What a row adds to its registry's total: outages have a row of their own there. */
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
