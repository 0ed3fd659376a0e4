import { collectDefaultMetrics, Registry, type Metric } from 'prom-client';

/**
 * Every metric of the mirror, in one table. A labelled prom-client counter costs as much as answering a request from
 * memory, so the numbers here are plain fields, and prom-client reads them when it is scraped.
 */

/** What prom-client's registry asks of a metric. */
interface Sample {
  labels: Record<string, string | number>;
  value: number;
  metricName?: string;
}

abstract class PlainMetric {
  abstract readonly type: 'counter' | 'gauge' | 'histogram';
  readonly name: string;
  readonly help: string;
  readonly aggregator = 'sum';

  constructor(registry: Registry, name: string, help: string) {
    this.name = name;
    this.help = help;
    // prom-client's type asks for its own classes; its registry calls get() alone.
    registry.registerMetric(this as unknown as Metric);
  }

  abstract samples(): Sample[];

  get(): Promise<{ name: string; help: string; type: string; aggregator: string; values: Sample[] }> {
    const { name, help, type, aggregator } = this;
    return Promise.resolve({ name, help, type, aggregator, values: this.samples() });
  }
}

interface Series {
  count: number;
}

/** A counter with labels, whose values the caller gives in the order of the names. */
class Counter<L extends string[]> extends PlainMetric {
  readonly type = 'counter';
  readonly #labels: readonly string[];
  readonly #series = new Map<string, { values: L; count: number }>();

  constructor(registry: Registry, name: string, help: string, labels: { [K in keyof L]: string }) {
    super(registry, name, help);
    this.#labels = labels;
  }

  add(count: number, ...values: L): void {
    this.series(...values).count += count;
  }

  /** One series, to be counted up without being looked for again. */
  series(...values: L): Series {
    const key = values.join('\n');
    let series = this.#series.get(key);
    if (!series) {
      series = { values, count: 0 };
      this.#series.set(key, series);
    }
    return series;
  }

  get total(): number {
    let total = 0;
    for (const { count } of this.#series.values()) total += count;
    return total;
  }

  samples(): Sample[] {
    return [...this.#series.values()].map(({ values, count }) => ({
      labels: Object.fromEntries(this.#labels.map((label, i) => [label, values[i] ?? ''])),
      value: count,
    }));
  }
}

class Gauge extends PlainMetric {
  readonly type = 'gauge';
  /** Read at each scrape. */
  read: () => number = () => 0;

  samples(): Sample[] {
    return [{ labels: {}, value: this.read() }];
  }
}

/** A gauge with labels: each reading gives all its series, the values of the labels in the order of their names. */
class Gauges<L extends string[]> extends PlainMetric {
  readonly type = 'gauge';
  readonly #labels: readonly string[];
  read: () => [...L, value: number][] = () => [];

  constructor(registry: Registry, name: string, help: string, labels: { [K in keyof L]: string }) {
    super(registry, name, help);
    this.#labels = labels;
  }

  samples(): Sample[] {
    return this.read().map((series) => ({
      labels: Object.fromEntries(this.#labels.map((label, i) => [label, series[i] as string])),
      value: series.at(-1) as number,
    }));
  }
}

class Histogram extends PlainMetric {
  readonly type = 'histogram';
  readonly #bounds: readonly number[];
  readonly #counts: Float64Array;
  #sum = 0;

  constructor(registry: Registry, name: string, help: string, bounds: readonly number[]) {
    super(registry, name, help);
    this.#bounds = bounds;
    this.#counts = new Float64Array(bounds.length + 1);
  }

  observe(value: number): void {
    let at = 0;
    while (at < this.#bounds.length && value > (this.#bounds[at] ?? Infinity)) at += 1;
    this.#counts[at] = (this.#counts[at] ?? 0) + 1;
    this.#sum += value;
  }

  samples(): Sample[] {
    let total = 0;
    const buckets = [...this.#bounds, '+Inf'].map((le, i) => {
      total += this.#counts[i] ?? 0;
      return { metricName: `${this.name}_bucket`, labels: { le }, value: total };
    });
    return [
      ...buckets,
      { metricName: `${this.name}_sum`, labels: {}, value: this.#sum },
      { metricName: `${this.name}_count`, labels: {}, value: total },
    ];
  }
}

const seconds = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 300];

export type Kind = 'manifest' | 'blob' | 'tags' | 'referrers';
type ProxyKind = 'manifest' | 'blob';
export type UpstreamKind = Kind | 'token' | 'ping' | 'redirect';

export class Metrics {
  readonly #r = new Registry();

  readonly #requests = new Counter<[registry: string, kind: Kind, result: string]>(
    this.#r,
    'layercache_requests_total',
    'Requests by registry, kind and result (as X-Cache, or error).',
    ['registry', 'kind', 'result'],
  );
  readonly #servedBytes = new Counter<[registry: string, kind: Kind, result: string]>(
    this.#r,
    'layercache_served_bytes_total',
    'Bytes of manifests, blobs and lists sent to clients.',
    ['registry', 'kind', 'result'],
  );
  readonly upstreamRequests = new Counter<[registry: string, kind: UpstreamKind, status: string]>(
    this.#r,
    'layercache_upstream_requests_total',
    'Calls to upstreams, by status code or "error".',
    ['registry', 'kind', 'status'],
  );
  readonly upstreamBytes = new Counter<[registry: string]>(
    this.#r,
    'layercache_upstream_bytes_total',
    'Bytes of manifests and blobs received from upstreams.',
    ['registry'],
  );
  readonly requestSeconds = new Histogram(
    this.#r,
    'layercache_request_seconds',
    'Time from request to the last byte of its answer.',
    seconds,
  );
  readonly firstByteSeconds = new Histogram(
    this.#r,
    'layercache_first_byte_seconds',
    'Time from request to the headers of its answer.',
    seconds,
  );
  readonly fillsActive = new Gauge(this.#r, 'layercache_fills_active', 'Downloads in progress.');
  readonly fillBytesPending = new Gauge(
    this.#r,
    'layercache_fill_bytes_pending',
    'Bytes on disk of unfinished fills.',
  );
  readonly prefetchedBytes = new Counter<[used: 'yes' | 'no']>(
    this.#r,
    'layercache_prefetched_bytes_total',
    'Bytes of layers fetched before a client asked for them, by whether one did within 5 minutes.',
    ['used'],
  );
  readonly storeBytes = new Gauge(
    this.#r,
    'layercache_store_bytes',
    'Bytes that stored and arriving content takes on disk.',
  );
  readonly storeLimitBytes = new Gauge(this.#r, 'layercache_store_limit_bytes', 'The cap, store.maxBytes.');
  readonly quotaLimit = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_limit',
    'Pulls in a window, as the upstream says; absent where it counts none.',
    ['registry', 'account'],
  );
  readonly quotaRemaining = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_remaining',
    'Pulls that are left.',
    ['registry', 'account'],
  );
  readonly quotaResetSeconds = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_reset_seconds',
    'Until pulls may be back; 0 while some are left.',
    ['registry', 'account'],
  );
  readonly quotaExhaustionSeconds = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_exhaustion_seconds',
    'Until no pull is left, at the rate of the last 15 minutes.',
    ['registry', 'account'],
  );
  readonly accountsAside = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_account_refused',
    '1 while the account is set aside, since its credentials were refused or cannot be had.',
    ['registry', 'account'],
  );
  readonly hostsShut = new Gauges<[registry: string, host: 'registry' | 'other']>(
    this.#r,
    'layercache_breaker_open',
    'Hosts that are not asked for a while: the registry itself, and token servers and CDNs.',
    ['registry', 'host'],
  );
  readonly upstreamInsecure = new Gauges<[registry: string]>(
    this.#r,
    'layercache_upstream_insecure',
    '1 for an upstream that is believed without a certificate (insecureSkipVerify).',
    ['registry'],
  );
  readonly admissionsRefused = new Counter<[registry: string, reason: string]>(
    this.#r,
    'layercache_admissions_refused_total',
    'Upstream calls that were not made, by reason.',
    ['registry', 'reason'],
  );
  readonly ledger = new Gauges<[registry: string, item: string]>(
    this.#r,
    'layercache_ledger',
    'What pulls have cost and saved in the last year, over restarts: see docs/quota.md.',
    ['registry', 'item'],
  );
  readonly evictions = new Counter<[reason: string]>(
    this.#r,
    'layercache_evictions_total',
    'Blobs put out of the store, by reason.',
    ['reason'],
  );
  readonly damagedBlobs = new Counter<[]>(
    this.#r,
    'layercache_damaged_blobs_total',
    'Stored blobs that were found wrong, and taken out.',
    [],
  );
  readonly storeWritable = new Gauge(
    this.#r,
    'layercache_store_writable',
    '0 while the disk does not take what is written: pulls go past the store.',
  );
  readonly storePinnedBytes = new Gauge(
    this.#r,
    'layercache_store_pinned_bytes',
    'Bytes of stored blobs that pins keep from being evicted.',
  );
  readonly logLinesDropped = new Counter<[]>(
    this.#r,
    'layercache_log_dropped_lines_total',
    'Lines of the log that nobody took in time.',
    [],
  );
  readonly catalogPruned = new Counter<[table: string]>(
    this.#r,
    'layercache_catalog_pruned_total',
    'Rows that were removed from the catalog for being too many or of no more use, by table.',
    ['table'],
  );
  readonly prefetchSkipped = new Counter<[]>(
    this.#r,
    'layercache_prefetch_skipped_total',
    'Layers that were not fetched ahead, since too many were waiting for it.',
    [],
  );
  readonly faults = new Counter<[fault: string]>(this.#r, 'layercache_faults_total', 'Faults, by name.', [
    'fault',
  ]);
  readonly buildInfo = new Gauges<[version: string, node: string]>(
    this.#r,
    'layercache_build_info',
    'Always 1; the labels say what runs.',
    ['version', 'node'],
  );

  // The series of the CNCF registry's proxy, so that dashboards made for it go on working.
  readonly #proxyRequests = this.#proxySeries('requests', 'Requests of clients.');
  readonly #proxyHits = this.#proxySeries('hits', 'Requests answered from the store.');
  readonly #proxyMisses = this.#proxySeries('misses', 'Requests that asked the upstream.');
  readonly proxyPulledBytes = this.#proxySeries('pulled_bytes', 'Bytes received from upstreams.');
  readonly #proxyPushedBytes = this.#proxySeries('pushed_bytes', 'Bytes sent to clients.');

  readonly #answers = new Map<string, { requests: Series[]; bytes: Series[] }>();

  constructor() {
    collectDefaultMetrics({ register: this.#r });
    // Gauges by the names of counters; the same figures are there by type.
    for (const what of ['handles', 'requests', 'resources'])
      this.#r.removeSingleMetric(`nodejs_active_${what}_total`);
  }

  /** Counts an answer to a client: on the path of every hit, so its series are looked up once. */
  answered(registry: string, kind: Kind, result: string, bytes: number): void {
    const key = `${registry} ${kind} ${result}`;
    let series = this.#answers.get(key);
    if (!series) {
      const isMiss = result === 'miss' || result === 'error';
      series = {
        requests: [this.#requests.series(registry, kind, result)],
        bytes: [this.#servedBytes.series(registry, kind, result)],
      };
      if (kind === 'manifest' || kind === 'blob') {
        const outcome = isMiss ? this.#proxyMisses : this.#proxyHits;
        series.requests.push(this.#proxyRequests.series(kind), outcome.series(kind));
        series.bytes.push(this.#proxyPushedBytes.series(kind));
      }
      this.#answers.set(key, series);
    }
    for (const each of series.requests) each.count += 1;
    for (const each of series.bytes) each.count += bytes;
  }

  get contentType(): string {
    return this.#r.contentType;
  }

  render(): Promise<string> {
    return this.#r.metrics();
  }

  #proxySeries(name: string, help: string): Counter<[type: ProxyKind]> {
    return new Counter<[type: ProxyKind]>(this.#r, `registry_proxy_${name}_total`, help, ['type']);
  }
}
