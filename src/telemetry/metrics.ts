import { collectDefaultMetrics, Registry } from 'prom-client';
import { Counter, Gauge, Gauges, Histogram, type Reading, type Series } from './metric-types.ts';

const seconds = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 300];

export type Kind = 'manifest' | 'blob' | 'tags' | 'referrers';
type ProxyKind = 'manifest' | 'blob';
export type UpstreamKind = Kind | 'token' | 'ping' | 'redirect';

/** What the gauges of upstreams and their accounts show, read at each scrape. */
export interface UpstreamReadings {
  readonly quotaLimit: () => Reading<[registry: string, account: string]>;
  readonly quotaRemaining: () => Reading<[registry: string, account: string]>;
  readonly quotaResetSeconds: () => Reading<[registry: string, account: string]>;
  readonly quotaExhaustionSeconds: () => Reading<[registry: string, account: string]>;
  readonly accountsAside: () => Reading<[registry: string, account: string]>;
  readonly hostsShut: () => Reading<[registry: string, host: 'registry' | 'other']>;
}

/** What all gauges show, read at each scrape. */
export interface Readings extends UpstreamReadings {
  readonly fillsActive: () => number;
  readonly fillBytesPending: () => number;
  readonly storeBytes: () => number;
  readonly storeLimitBytes: () => number;
  readonly storeWritable: () => number;
  readonly storePinnedBytes: () => number;
  readonly upstreamInsecure: () => Reading<[registry: string]>;
  readonly ledger: () => Reading<[registry: string, item: string]>;
  readonly buildInfo: () => Reading<[version: string, node: string]>;
}

/** Every metric of the mirror, in one table: they are shown in its order. */
export class Metrics {
  readonly #r = new Registry();
  #readings: Readings | undefined;

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
  readonly fillsActive = new Gauge(this.#r, 'layercache_fills_active', 'Downloads in progress.', () =>
    this.#readings?.fillsActive(),
  );
  readonly fillBytesPending = new Gauge(
    this.#r,
    'layercache_fill_bytes_pending',
    'Bytes on disk of unfinished fills.',
    () => this.#readings?.fillBytesPending(),
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
    () => this.#readings?.storeBytes(),
  );
  readonly storeLimitBytes = new Gauge(
    this.#r,
    'layercache_store_limit_bytes',
    'The cap, store.maxBytes.',
    () => this.#readings?.storeLimitBytes(),
  );
  readonly quotaLimit = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_limit',
    'Pulls in a window, as the upstream says; absent where it counts none.',
    ['registry', 'account'],
    () => this.#readings?.quotaLimit(),
  );
  readonly quotaRemaining = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_remaining',
    'Pulls that are left.',
    ['registry', 'account'],
    () => this.#readings?.quotaRemaining(),
  );
  readonly quotaResetSeconds = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_reset_seconds',
    'Until pulls may be back; 0 while some are left.',
    ['registry', 'account'],
    () => this.#readings?.quotaResetSeconds(),
  );
  readonly quotaExhaustionSeconds = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_exhaustion_seconds',
    'Until no pull is left, at the rate of the last 15 minutes.',
    ['registry', 'account'],
    () => this.#readings?.quotaExhaustionSeconds(),
  );
  readonly accountsAside = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_account_refused',
    '1 while the account is set aside, since its credentials were refused or cannot be had.',
    ['registry', 'account'],
    () => this.#readings?.accountsAside(),
  );
  readonly hostsShut = new Gauges<[registry: string, host: 'registry' | 'other']>(
    this.#r,
    'layercache_breaker_open',
    'Hosts that are not asked for a while: the registry itself, and token servers and CDNs.',
    ['registry', 'host'],
    () => this.#readings?.hostsShut(),
  );
  readonly upstreamInsecure = new Gauges<[registry: string]>(
    this.#r,
    'layercache_upstream_insecure',
    '1 for an upstream that is believed without a certificate (insecureSkipVerify).',
    ['registry'],
    () => this.#readings?.upstreamInsecure(),
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
    () => this.#readings?.ledger(),
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
    () => this.#readings?.storeWritable(),
  );
  readonly storePinnedBytes = new Gauge(
    this.#r,
    'layercache_store_pinned_bytes',
    'Bytes of stored blobs that pins keep from being evicted.',
    () => this.#readings?.storePinnedBytes(),
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
    () => this.#readings?.buildInfo(),
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

  /** Where the gauges read from now on: what has the figures counts by these metrics itself, so it is made after them. */
  show(readings: Readings): void {
    this.#readings = readings;
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
