import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Answer } from '../mirror/mirror.ts';
import { smallSize, type Content } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { parseWant, resolveWant, type ByteRange, type Want } from '../oci/range.ts';
import { faults, MirrorError } from '../util/errors.ts';
import type { Kind } from '../util/metrics.ts';
import type { AccessRecord } from './access-log.ts';

/** Headers as writeHead takes them: names and values in turn. */
type Headers = string[];

const commonHeaders = [
  'Docker-Distribution-API-Version',
  'registry/2.0',
  'X-Content-Type-Options',
  'nosniff',
];

export interface Exchange {
  readonly req: IncomingMessage;
  readonly res: ServerResponse;
  readonly record: AccessRecord;
  /** By the monotonic clock. */
  readonly now: () => number;
  readonly whenSpent: 429 | 503;
}

export function sendPing({ req, res, record }: Exchange): void {
  record.status = 200;
  res.writeHead(200, [...commonHeaders, 'Content-Type', 'application/json', 'Content-Length', '2']);
  res.end(req.method === 'HEAD' ? undefined : '{}');
}

/** Writes what the mirror found, as HEAD, Range and If-None-Match ask for it. `ns` is echoed. */
export async function sendAnswer(
  exchange: Exchange,
  answer: Answer,
  kind: Kind,
  ns: string | undefined,
): Promise<void> {
  const { req, res, record } = exchange;
  const { digest, size, content } = answer;
  record.result = answer.result;
  record.reason = answer.reason;
  const headers = headersOf(answer, kind, ns);
  if (matches(req.headers['if-none-match'], digest)) {
    start(exchange, 304, headers);
    res.end();
    return;
  }
  headers.push('Content-Type', answer.mediaType);
  const range = kind === 'blob' && content ? rangeOf(req, digest, size) : undefined;
  if (range && size !== undefined) {
    headers.push('Content-Range', `bytes ${range.start}-${range.end - 1}/${size}`);
    headers.push('Content-Length', String(range.end - range.start));
  } else if (size !== undefined) headers.push('Content-Length', String(size));
  start(exchange, range ? 206 : 200, headers);
  if (!content) {
    res.end();
    return;
  }
  // Small content leaves together with its headers; of other content the first byte may still be far away.
  if (size === undefined || size > smallSize) res.flushHeaders();
  await sendContent(res, content, range, record);
}

/** Writes a fault as OCI JSON; once headers are out, a broken connection is the only truth left. */
export function sendFault({ req, res, record, now, whenSpent }: Exchange, fault: MirrorError): void {
  const { status, code } =
    fault.fault === 'quota-spent' && whenSpent === 503 ? faults['upstream-down'] : fault.row;
  record.fault = fault.fault;
  // A client that leaves early says nothing about our answer.
  if (fault.fault !== 'client-gone') record.result = 'error';
  if (res.headersSent) {
    res.destroy();
    return;
  }
  const body = Buffer.from(
    JSON.stringify({ errors: [{ code, message: fault.message, detail: { fault: fault.fault } }] }),
  );
  const all = [...commonHeaders, 'Content-Type', 'application/json', 'Content-Length', String(body.length)];
  if (fault.retryAfterMs !== undefined) all.push('Retry-After', String(Math.ceil(fault.retryAfterMs / 1000)));
  if (fault.fault === 'method-unsupported') all.push('Allow', 'GET, HEAD', 'Connection', 'close');
  if (fault.fault === 'range-unsatisfiable') all.push('Content-Range', `bytes */${record.size ?? '*'}`);
  if (fault.fault === 'draining') all.push('Connection', 'close');
  record.status = status;
  record.headersAt = now();
  res.writeHead(status, all);
  res.end(req.method === 'HEAD' ? undefined : body);
}

function start({ res, record, now }: Exchange, status: number, headers: Headers): void {
  record.status = status;
  record.headersAt = now();
  res.writeHead(status, headers);
}

async function sendContent(
  res: ServerResponse,
  content: Content,
  range: ByteRange | undefined,
  record: AccessRecord,
): Promise<void> {
  // The copy is told of a broken connection by 'close'; an 'error' that nobody listens to would end the process.
  res.on('error', ignore);
  const { socket } = res;
  const before = socket?.bytesWritten ?? 0;
  try {
    await content.copyTo(res, range);
    record.bytes = (range ? range.end - range.start : content.size) ?? 0;
  } catch (error) {
    record.bytes = Math.max(0, (socket?.bytesWritten ?? 0) - before);
    throw error;
  }
}

function headersOf(
  { digest, result, reason, ageMs, size }: Answer,
  kind: Kind,
  ns: string | undefined,
): Headers {
  const headers = [
    ...commonHeaders,
    'Docker-Content-Digest',
    digest,
    'ETag',
    `"${digest}"`,
    'X-Cache',
    result,
  ];
  if (reason !== undefined) headers.push('X-Cache-Reason', reason);
  if (kind === 'blob' && size !== undefined) headers.push('Accept-Ranges', 'bytes');
  if (ageMs !== undefined) headers.push('Age', String(Math.max(0, Math.floor(ageMs / 1000))));
  if (result === 'stale')
    headers.push('Warning', `299 - "layercache: served as it was, ${reason ?? 'upstream-down'}"`);
  if (ns !== undefined) headers.push('OCI-Namespace', ns);
  return headers;
}

function ignore(): void {
  // Said elsewhere.
}

/** RFC 9110 section 13.1.2; bare digests come from clients that forget the quotes. */
function matches(header: string | undefined, digest: string): boolean {
  if (header === undefined) return false;
  return header.split(',').some((each) => {
    const tag = each
      .trim()
      .replace(/^W\//, '')
      .replace(/^"(.*)"$/, '$1');
    return tag === '*' || tag === digest;
  });
}

/** What part of a blob is asked for, before its size may be known. Throws `ranges-unsupported`. */
export function wantOf(req: IncomingMessage, digest: Digest): Want {
  const condition = req.headers['if-range'];
  if (condition !== undefined && condition !== `"${digest}"`) return 'whole';
  const want = parseWant(req.headers.range);
  if (want !== 'several') return want;
  throw new MirrorError('ranges-unsupported', `blob ${digest}: one range at a time, please`);
}

/** Throws `range-unsatisfiable`. */
function rangeOf(req: IncomingMessage, digest: Digest, size: number | undefined): ByteRange | undefined {
  const want = wantOf(req, digest);
  if (want === 'whole' || size === undefined) return undefined;
  const range = resolveWant(want, size);
  if (range) return range;
  throw new MirrorError(
    'range-unsatisfiable',
    `blob ${digest}: Range asks for nothing within its ${size} bytes`,
  );
}
