import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Answer } from '../mirror/answer.ts';
import type { ListAnswer } from '../mirror/tags/lists.ts';
import { smallSize, type Content } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { isMultiRange, parseRanges, resolveWants, type ByteRange, type Wants } from '../oci/range.ts';
import type { Route } from '../oci/route.ts';
import type { Kind } from '../telemetry/metrics.ts';
import { faults, MirrorError } from '../util/errors.ts';
import type { AccessRecord } from './access-log.ts';
import { Multipart } from './multipart.ts';

/** Alternating names and values, as writeHead takes them. */
type Headers = string[];

const commonHeaders = [
  'Docker-Distribution-API-Version',
  'registry/2.0',
  'X-Content-Type-Options',
  'nosniff',
];

type ListRoute = Extract<Route, { kind: 'tags' | 'referrers' }>;

type ContentRoute = Extract<Route, { kind: 'blob' | 'manifest' }>;

export interface Exchange {
  readonly req: IncomingMessage;
  readonly res: ServerResponse;
  readonly record: AccessRecord;
  /** Monotonic clock, ms. */
  readonly now: () => number;
  readonly whenSpent: 429 | 503;
  /** `ratelimit-*` headers, where the request spent a pull or would have. */
  pullHeaders?: Headers;
}

export function sendPing({ req, res, record }: Exchange, ns: string | undefined): void {
  record.status = 200;
  const headers = [...commonHeaders, 'Content-Type', 'application/json', 'Content-Length', '2'];
  if (ns !== undefined) headers.push('OCI-Namespace', ns);
  res.writeHead(200, headers);
  res.end(req.method === 'HEAD' ? undefined : '{}');
}

/** Sends a blob or manifest, honouring HEAD, `wants` and If-None-Match. Echoes `ns`. */
export async function sendAnswer(
  exchange: Exchange,
  answer: Answer,
  { kind, ns }: ContentRoute,
  wants: Wants,
): Promise<void> {
  const { res, record } = exchange;
  const { digest, size, content } = answer;
  record.result = answer.result;
  record.reason = answer.reason;
  const headers = headersOf(answer, kind, ns);
  if (exchange.pullHeaders) headers.push(...exchange.pullHeaders);
  if (sendNotModified(exchange, digest, headers)) return;
  const part = partOf(wants, content);
  if (part instanceof Multipart) {
    headers.push('Content-Type', part.mediaType, 'Content-Length', String(part.length));
  } else {
    headers.push('Content-Type', answer.mediaType);
    const length = part ? part.end - part.start : size;
    if (part) headers.push('Content-Range', `bytes ${part.start}-${part.end - 1}/${size ?? '*'}`);
    if (length !== undefined) headers.push('Content-Length', String(length));
  }
  start(exchange, part ? 206 : 200, headers);
  if (!content) {
    res.end();
    return;
  }
  // Small content shares a packet with its headers; larger content may still be arriving, so headers go first.
  if (size === undefined || size > smallSize) res.flushHeaders();
  await sendContent(res, content, part, record);
}

/** Sends a page of a list; its Link to the next page keeps the client's path and `ns`. */
export function sendList(exchange: Exchange, answer: ListAnswer, { kind, ns, path }: ListRoute): void {
  const { res, record } = exchange;
  const { digest, size, content, next, filters } = answer;
  record.result = answer.result;
  record.reason = answer.reason;
  record.size = size;
  const headers = headersOf(answer, kind, ns);
  if (filters !== undefined) headers.push('OCI-Filters-Applied', filters);
  if (next !== undefined) {
    const query = new URLSearchParams(next);
    if (ns !== undefined) query.set('ns', ns);
    headers.push('Link', `<${encodeURI(path)}?${query.toString()}>; rel="next"`);
  }
  if (sendNotModified(exchange, digest, headers)) return;
  headers.push('Content-Type', answer.mediaType, 'Content-Length', String(size));
  start(exchange, 200, headers);
  res.on('error', ignore);
  res.end(content);
  record.bytes = content?.length ?? 0;
}

/** Sends a fault as OCI error JSON; after the headers were sent, breaks the connection instead. */
export function sendFault(exchange: Exchange, fault: MirrorError): void {
  const { req, res, record, now, whenSpent, pullHeaders } = exchange;
  const { status, code } =
    fault.fault === 'quota-spent' && whenSpent === 503 ? faults['upstream-down'] : fault.row;
  record.fault = fault.fault;
  // A client that disconnects early is no error of the mirror.
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
  if (fault.fault === 'quota-spent' && pullHeaders) all.push(...pullHeaders);
  if (fault.fault === 'method-unsupported') all.push('Allow', 'GET, HEAD', 'Connection', 'close');
  if (fault.fault === 'unauthorized')
    all.push('WWW-Authenticate', 'Basic realm="layercache", charset="UTF-8"');
  if (fault.fault === 'range-unsatisfiable') all.push('Content-Range', `bytes */${record.size ?? '*'}`);
  if (fault.fault === 'draining') all.push('Connection', 'close');
  if (record.ns !== undefined) all.push('OCI-Namespace', record.ns);
  record.status = status;
  record.headersAt = now();
  res.writeHead(status, all);
  res.end(req.method === 'HEAD' ? undefined : body);
}

/** In Docker Hub's form (docs.docker.com, "Pull usage and limits"), so that a mirror of this mirror can read them. */
export function pullHeadersOf(figures: { limit: number; remaining: number; windowMs: number }): Headers {
  const window = `w=${Math.round(figures.windowMs / 1000)}`;
  return [
    ...['ratelimit-limit', `${figures.limit};${window}`],
    ...['ratelimit-remaining', `${figures.remaining};${window}`],
  ];
}

/** Predicate from If-None-Match: whether the client has the digest. */
export function hasClientCopy(req: IncomingMessage): ((digest: Digest) => boolean) | undefined {
  const header = req.headers['if-none-match'];
  return header === undefined ? undefined : (digest) => matches(header, digest);
}

/** Sends 304 if If-None-Match has the digest; returns whether it did. */
function sendNotModified(exchange: Exchange, digest: Digest, headers: Headers): boolean {
  if (!matches(exchange.req.headers['if-none-match'], digest)) return false;
  start(exchange, 304, headers);
  exchange.res.end();
  return true;
}

function start({ res, record, now }: Exchange, status: number, headers: Headers): void {
  record.status = status;
  record.headersAt = now();
  res.writeHead(status, headers);
}

async function sendContent(
  res: ServerResponse,
  content: Content,
  part: ByteRange | Multipart | undefined,
  record: AccessRecord,
): Promise<void> {
  // The copy notices a broken connection by 'close'; an unhandled 'error' event would end the process.
  res.on('error', ignore);
  const { socket } = res;
  const before = socket?.bytesWritten ?? 0;
  try {
    if (part instanceof Multipart) await part.send(content, res);
    else await content.copyTo(res, part);
    record.bytes =
      (part instanceof Multipart ? part.length : part ? part.end - part.start : content.size) ?? 0;
  } catch (error) {
    record.bytes = Math.max(0, (socket?.bytesWritten ?? 0) - before);
    throw error;
  }
}

function headersOf(
  { digest, result, reason, ageMs, size }: Omit<Answer, 'content'>,
  kind: Kind,
  ns: string | undefined,
): Headers {
  const headers = [...commonHeaders, 'ETag', `"${digest}"`, 'X-Cache', result];
  if (kind === 'blob' || kind === 'manifest') headers.push('Docker-Content-Digest', digest);
  if (reason !== undefined) headers.push('X-Cache-Reason', reason);
  if (kind === 'blob' && size !== undefined) headers.push('Accept-Ranges', 'bytes');
  if (ageMs !== undefined) headers.push('Age', String(Math.max(0, Math.floor(ageMs / 1000))));
  if (result === 'stale')
    headers.push('Warning', `299 - "layercache: served as it was, ${reason ?? 'upstream-down'}"`);
  if (ns !== undefined) headers.push('OCI-Namespace', ns);
  return headers;
}

function ignore(): void {
  // Handled by 'close'.
}

/** RFC 9110 section 13.1.2. Accepts unquoted digests, which some clients send. */
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

/** The ranges requested by Range and If-Range. Throws `ranges-unsupported`. */
export function wantsOf(req: IncomingMessage, digest: Digest): Wants {
  const condition = req.headers['if-range'];
  return condition === undefined || condition === `"${digest}"` ? parseRanges(req.headers.range) : 'whole';
}

/** The part of the content to send; undefined: all of it. Throws `range-unsatisfiable`, `ranges-unsupported`. */
function partOf(wants: Wants, content: Content | undefined): ByteRange | Multipart | undefined {
  const { digest, size, mediaType } = content ?? {};
  if (wants === 'whole' || digest === undefined || size === undefined || mediaType === undefined)
    return undefined;
  const ranges = resolveWants(wants, size);
  const [first] = ranges;
  if (first) return isMultiRange(wants) ? new Multipart(ranges, size, mediaType) : first;
  throw new MirrorError('range-unsatisfiable', `blob ${digest}: Range selects none of its ${size} bytes`);
}
