import type { Repo } from '../oci/repo.ts';
import type { Ledger } from '../telemetry/ledger.ts';
import type { Log } from '../telemetry/log.ts';
import type { Kind, Metrics } from '../telemetry/metrics.ts';
import type { Trace } from '../telemetry/trace.ts';

/** The facts of one request, for its access line and its metrics. */
export class AccessRecord implements Trace {
  upstreamCalls = 0;
  mirrors: readonly string[] = [];
  kind: Kind | 'ping' | undefined;
  repo: Repo | undefined;
  /** Value of the `ns` parameter, if it names a configured registry. */
  ns: string | undefined;
  /** Tag or digest. */
  reference = '';
  status = 0;
  /** The X-Cache value, or `error`. */
  result = '';
  reason: string | undefined;
  fault: string | undefined;
  bytes = 0;
  /** Size of the whole content in bytes, once known. */
  size: number | undefined;
  /** Client address. */
  readonly client: string;
  /** Authenticated user name. */
  user: string | undefined;
  readonly startedAt: number;
  headersAt = 0;

  constructor(now: number, client: string) {
    this.startedAt = now;
    this.client = client;
  }
}

export interface RequestLine {
  readonly method: string | undefined;
  readonly url: string;
  readonly agent: string | undefined;
}

export interface AccessContext {
  readonly log: Log;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
}

const maxText = 200;
/** Reasons of stale answers that do not mean an upstream outage. */
const nonOutageReasons = new Set(['quota-spent', 'tag-gone']);

/** Writes the access line of a request and counts it. The line is built by hand because every cache hit writes one. */
export function finishAccess(
  record: AccessRecord,
  line: RequestLine,
  now: number,
  { log, metrics, ledger }: AccessContext,
): void {
  const { kind, repo, result, bytes, startedAt, headersAt } = record;
  const firstByteMs = (headersAt || now) - startedAt;
  if (kind !== undefined && kind !== 'ping') {
    metrics.answered(repo?.upstream ?? '', kind, result, bytes);
    metrics.requestSeconds.observe((now - startedAt) / 1000);
    metrics.firstByteSeconds.observe(firstByteMs / 1000);
    if (repo && result !== 'error') {
      const entry = ledger.of(repo.upstream, repo.name, repo.key);
      entry.servedBytes += bytes;
      if (kind === 'manifest' && line.method === 'GET') entry.clientPulls += 1;
      if (result === 'stale' && !nonOutageReasons.has(record.reason ?? '')) {
        entry.bridged(now);
        ledger.of(repo.upstream, '').bridged(now);
      }
    }
  }
  // Repo, reference and fault are validated; all other client-controlled values are JSON-quoted.
  log.access(
    `{"msg":"request","method":"${line.method ?? ''}",` +
      (repo
        ? `"kind":"${kind ?? ''}","registry":"${repo.registry}","repo":"${repo.name}","reference":"${record.reference}",`
        : `"path":${quote(line.url)},`) +
      `"status":${record.status},"result":"${result}",` +
      (record.reason === undefined ? '' : `"reason":"${record.reason}",`) +
      (record.fault === undefined ? '' : `"fault":"${record.fault}",`) +
      `"bytes":${bytes},"firstByteMs":${firstByteMs.toFixed(1)},"ms":${(now - startedAt).toFixed(1)},` +
      `"upstreamCalls":${record.upstreamCalls},"client":"${record.client}",${record.user === undefined ? '' : `"user":${quote(record.user)},`}"agent":${quote(line.agent ?? '')}}`,
  );
}

/** Drops the query: it may carry secrets. */
function quote(text: string): string {
  return JSON.stringify(text.split('?', 1)[0]?.slice(0, maxText) ?? '');
}
