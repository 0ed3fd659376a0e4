import { collectDefaultMetrics, Registry } from 'prom-client';
import { Counter, Gauge, Gauges, Histogram, type Reading, type Series } from './metric-types.ts';

const seconds = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 300];

export type Kind = 'manifest' | 'blob' | 'tags' | 'referrers';
type ProxyKind = 'manifest' | 'blob';
export type UpstreamKind = Kind | 'token' | 'ping' | 'redirect';

/** Gauges of upstreams and their accounts, read at each scrape. */
export interface UpstreamReadings {
  readonly quotaLimit: () => Reading<[registry: string, account: string]>;
  readonly quotaRemaining: () => Reading<[registry: string, account: string]>;
  readonly quotaResetSeconds: () => Reading<[registry: string, account: string]>;
  readonly quotaExhaustionSeconds: () => Reading<[registry: string, account: string]>;
  readonly accountsRefused: () => Reading<[registry: string, account: string]>;
  readonly openBreakers: () => Reading<[registry: string, host: 'registry' | 'other']>;
}

/** All gauges, read at each scrape. */
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

/** All metrics of the mirror, rendered in this order. */
export class Metrics {
  readonly #r = new Registry();
  #readings: Readings | undefined;

  readonly #requests = new Counter<[registry: string, kind: Kind, result: string]>(
    this.#r,
    'layercache_requests_total',
    'Client requests, by registry, kind and result (X-Cache value or "error").',
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
    'Requests to upstreams, by status code or "error".',
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
    'Time from a request to the last byte of its response.',
    seconds,
  );
  readonly firstByteSeconds = new Histogram(
    this.#r,
    'layercache_first_byte_seconds',
    'Time from a request to the headers of its response.',
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
    'Bytes of prefetched layers, by whether a client requested them within 5 minutes.',
    ['used'],
  );
  readonly storeBytes = new Gauge(
    this.#r,
    'layercache_store_bytes',
    'Bytes on disk of stored and arriving content.',
    () => this.#readings?.storeBytes(),
  );
  readonly storeLimitBytes = new Gauge(
    this.#r,
    'layercache_store_limit_bytes',
    'Cap of the store, store.maxBytes.',
    () => this.#readings?.storeLimitBytes(),
  );
  readonly quotaLimit = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_limit',
    'Pulls per window, as reported by the upstream; absent if it reports none.',
    ['registry', 'account'],
    () => this.#readings?.quotaLimit(),
  );
  readonly quotaRemaining = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_remaining',
    'Pulls left in the window.',
    ['registry', 'account'],
    () => this.#readings?.quotaRemaining(),
  );
  readonly quotaResetSeconds = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_reset_seconds',
    'Seconds until pulls may be available again; 0 while some are left.',
    ['registry', 'account'],
    () => this.#readings?.quotaResetSeconds(),
  );
  readonly quotaExhaustionSeconds = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_quota_exhaustion_seconds',
    'Seconds until no pull is left, at the rate of the last 15 minutes.',
    ['registry', 'account'],
    () => this.#readings?.quotaExhaustionSeconds(),
  );
  readonly accountsRefused = new Gauges<[registry: string, account: string]>(
    this.#r,
    'layercache_account_refused',
    '1 while the account is not used: its credentials were refused or are unavailable.',
    ['registry', 'account'],
    () => this.#readings?.accountsRefused(),
  );
  readonly openBreakers = new Gauges<[registry: string, host: 'registry' | 'other']>(
    this.#r,
    'layercache_breaker_open',
    'Hosts whose circuit breaker is open: the registry itself, or other (token servers, CDNs).',
    ['registry', 'host'],
    () => this.#readings?.openBreakers(),
  );
  readonly upstreamInsecure = new Gauges<[registry: string]>(
    this.#r,
    'layercache_upstream_insecure',
    '1 for an upstream whose TLS certificate is not verified (insecureSkipVerify).',
    ['registry'],
    () => this.#readings?.upstreamInsecure(),
  );
  readonly admissionsRefused = new Counter<[registry: string, reason: string]>(
    this.#r,
    'layercache_admissions_refused_total',
    'Upstream requests that were not made, by reason.',
    ['registry', 'reason'],
  );
  readonly ledger = new Gauges<[registry: string, item: string]>(
    this.#r,
    'layercache_ledger',
    'Pulls and bytes spent and saved in the last year, across restarts: see docs/quota.md.',
    ['registry', 'item'],
    () => this.#readings?.ledger(),
  );
  readonly evictions = new Counter<[reason: string]>(
    this.#r,
    'layercache_evictions_total',
    'Blobs evicted from the store, by reason.',
    ['reason'],
  );
  readonly damagedBlobs = new Counter<[]>(
    this.#r,
    'layercache_damaged_blobs_total',
    'Stored blobs found damaged and removed.',
    [],
  );
  readonly storeWritable = new Gauge(
    this.#r,
    'layercache_store_writable',
    '0 while the disk cannot be written: pulls bypass the store.',
    () => this.#readings?.storeWritable(),
  );
  readonly storePinnedBytes = new Gauge(
    this.#r,
    'layercache_store_pinned_bytes',
    'Bytes of stored blobs protected by pins.',
    () => this.#readings?.storePinnedBytes(),
  );
  readonly logLinesDropped = new Counter<[]>(
    this.#r,
    'layercache_log_dropped_lines_total',
    'Log lines dropped because the reader of standard output was too slow.',
    [],
  );
  readonly catalogPruned = new Counter<[table: string]>(
    this.#r,
    'layercache_catalog_pruned_total',
    'Superfluous rows removed from the catalog, by table.',
    ['table'],
  );
  readonly prefetchSkipped = new Counter<[]>(
    this.#r,
    'layercache_prefetch_skipped_total',
    'Layers not prefetched because the prefetch queue was full.',
    [],
  );
  readonly faults = new Counter<[fault: string]>(this.#r, 'layercache_faults_total', 'Faults, by name.', [
    'fault',
  ]);
  readonly buildInfo = new Gauges<[version: string, node: string]>(
    this.#r,
    'layercache_build_info',
    'Always 1; labels give the versions of the mirror and of Node.js.',
    ['version', 'node'],
    () => this.#readings?.buildInfo(),
  );

  // Series of the CNCF registry's proxy, for dashboards made for it.
  readonly #proxyRequests = this.#proxySeries('requests', 'Client requests.');
  readonly #proxyHits = this.#proxySeries('hits', 'Requests answered from the store.');
  readonly #proxyMisses = this.#proxySeries('misses', 'Requests that needed the upstream.');
  readonly proxyPulledBytes = this.#proxySeries('pulled_bytes', 'Bytes received from upstreams.');
  readonly #proxyPushedBytes = this.#proxySeries('pushed_bytes', 'Bytes sent to clients.');

  readonly #answers = new Map<string, { requests: Series[]; bytes: Series[] }>();

  constructor() {
    collectDefaultMetrics({ register: this.#r });
    // Gauges that are named like counters; the same figures exist by type.
    for (const what of ['handles', 'requests', 'resources'])
      this.#r.removeSingleMetric(`nodejs_active_${what}_total`);
  }

  /** Connects the gauges. Their sources use these metrics, and are built after them. */
  connect(readings: Readings): void {
    this.#readings = readings;
  }

  /** Counts a response to a client. Its series are cached: every cache hit comes here. */
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
