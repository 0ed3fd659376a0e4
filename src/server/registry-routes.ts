import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Answer, ClientRequest } from '../mirror/answer.ts';
import type { Mirror } from '../mirror/mirror.ts';
import type { Lists } from '../mirror/tags/lists.ts';
import type { Upstreams } from '../mirror/upstreams.ts';
import { enclosingRange, type Wants } from '../oci/range.ts';
import type { Repo } from '../oci/repo.ts';
import { parseRoute, splitAbsolute, type Route } from '../oci/route.ts';
import type { Ledger } from '../telemetry/ledger.ts';
import type { Log } from '../telemetry/log.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import { trace } from '../telemetry/trace.ts';
import type { Clock } from '../util/clock.ts';
import { isFault, MirrorError, toMirrorError } from '../util/errors.ts';
import { AccessRecord, finishAccess } from './access-log.ts';
import type { Clients } from './clients.ts';
import { awaitEarlierRequests, finishRequest } from './pipelining.ts';
import {
  hasClientCopy,
  pullHeadersOf,
  sendAnswer,
  sendFault,
  sendList,
  sendPing,
  wantsOf,
  type Exchange,
} from './send.ts';
import { mirrorsOf } from './via.ts';

export interface RegistryContext {
  readonly clients: Clients;
  readonly mirror: Mirror;
  readonly lists: Lists;
  readonly upstreams: Upstreams;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  readonly isDraining: () => boolean;
  /** Concurrent requests; more get 503. */
  readonly maxRequests: number;
  /** This mirror's name in Via. */
  readonly pseudonym: string;
  /** Status for `quota-spent`: some clients switch to their next mirror sooner on 503. */
  readonly whenSpent: () => 429 | 503;
}

/**
 * The registry API as one handler. It never rejects, and writes one access line per request. It parses the raw request
 * target, since repository names contain slashes and are parsed from the right.
 */
export function createRegistryHandler(
  context: RegistryContext,
): (req: IncomingMessage, res: ServerResponse) => Promise<void> {
  const { clients, clock, maxRequests, whenSpent } = context;
  const now = (): number => clock.monotonic();
  let running = 0;
  return async (req, res) => {
    const earlier = awaitEarlierRequests(req.socket);
    if (earlier) await earlier;
    // The client disconnected while the request was queued.
    if (earlier && req.socket.destroyed) {
      finishRequest(req.socket);
      return;
    }
    const record = new AccessRecord(now(), clients.addressOf(req));
    const exchange: Exchange = { req, res, record, now, whenSpent: whenSpent() };
    running += 1;
    try {
      if (running > maxRequests) {
        const why = `${maxRequests} requests are in progress`;
        throw new MirrorError('overloaded', why, { retryAfterMs: 1000 });
      }
      await trace.run(record, () => serve(exchange, context));
    } catch (error) {
      const fault = toMirrorError(error);
      report(fault, record, context);
      sendFault(exchange, fault);
    } finally {
      running -= 1;
      finishRequest(req.socket);
    }
    const { method, url = '', headers } = req;
    const line = { method, url, agent: headers['user-agent'] };
    finishAccess(record, line, now(), context);
  };
}

async function serve(exchange: Exchange, context: RegistryContext): Promise<void> {
  const { req, record } = exchange;
  const { upstreams, clients, isDraining, pseudonym } = context;
  if (hasTwoHosts(req)) throw new MirrorError('request-invalid', 'headers: Host is given more than once');
  if (isDraining()) throw new MirrorError('draining', 'this mirror is shutting down');
  record.mirrors = mirrorsOf(req, pseudonym);
  const client = await clients.admit(req, exchange.res, record.client);
  record.user = client.user;
  const absolute = splitAbsolute(req.url ?? '');
  const route = parseRoute(req.method ?? '', absolute?.target ?? req.url ?? '');
  record.kind = route.kind;
  if (route.kind === 'ping') {
    upstreams.registryNamedBy(route);
    record.ns = route.ns;
    sendPing(exchange, route.ns);
    return;
  }
  const { ns, prefix } = route;
  const repo = upstreams.repo(route.name, { ns, prefix, host: absolute?.host ?? req.headers.host });
  record.ns = ns;
  const method = req.method === 'HEAD' ? 'HEAD' : 'GET';
  record.repo = repo;
  record.reference = referenceOf(route);
  clients.authorize(client, repo, tagOf(route));
  await answer(
    exchange,
    route,
    repo,
    { method, client: client.address, clientHas: hasClientCopy(req) },
    context,
  );
}

async function answer(
  exchange: Exchange,
  route: Exclude<Route, { kind: 'ping' }>,
  repo: Repo,
  asked: ClientRequest,
  context: RegistryContext,
): Promise<void> {
  const { mirror, lists } = context;
  const { req, record } = exchange;
  if (route.kind === 'tags' || route.kind === 'referrers') {
    const list = await lists.answer(repo, route, route.query, asked.method);
    const { res } = exchange;
    const release = lists.reserveMemory(list.content?.length ?? 0);
    // The client may have disconnected during the upstream request.
    if (res.destroyed || res.closed) release();
    else res.once('close', release);
    sendList(exchange, list, route);
    return;
  }
  const { method } = asked;
  let found: Answer;
  let wants: Wants = 'whole';
  if (route.kind === 'manifest') {
    try {
      found = await mirror.manifest(repo, route.reference, asked);
    } catch (error) {
      if (isFault(error, 'quota-spent')) addPullHeaders(exchange, repo, context);
      throw error;
    }
    if (found.result === 'miss' || (method === 'HEAD' && 'tag' in route.reference))
      addPullHeaders(exchange, repo, context);
  } else {
    if (method === 'GET') wants = wantsOf(req, route.digest);
    found = await mirror.blob(repo, route.digest, asked, enclosingRange(wants));
  }
  record.size = found.size;
  try {
    await sendAnswer(exchange, found, route, wants);
  } finally {
    found.content?.release();
  }
}

/** Adds `ratelimit-*` headers where a pull was or would be spent; clients read them from a HEAD of a tag. */
function addPullHeaders(exchange: Exchange, repo: Repo, { upstreams }: RegistryContext): void {
  const figures = upstreams.pullsLeft(repo);
  if (figures) exchange.pullHeaders = pullHeadersOf(figures);
}

/** A proxy in front may have routed or authorised by the other Host. */
function hasTwoHosts({ rawHeaders }: IncomingMessage): boolean {
  let count = 0;
  for (let i = 0; i < rawHeaders.length; i += 2)
    if (rawHeaders[i]?.length === 4 && rawHeaders[i]?.toLowerCase() === 'host') count += 1;
  return count > 1;
}

function tagOf(route: Route): string | undefined {
  return route.kind === 'manifest' && 'tag' in route.reference ? route.reference.tag : undefined;
}

function referenceOf(route: Exclude<Route, { kind: 'ping' }>): string {
  if (route.kind === 'tags') return '';
  if (route.kind !== 'manifest') return route.digest;
  return 'tag' in route.reference ? route.reference.tag : route.reference.digest;
}

function report(error: MirrorError, record: AccessRecord, { log, metrics }: RegistryContext): void {
  metrics.faults.add(1, error.fault);
  // When the upstream was not asked (breaker, quota), the cause was logged when it began.
  log.events[error.notAsked ? 'debug' : error.row.level](
    { err: error, ...(record.repo && { repo: record.repo.key, reference: record.reference }) },
    'a request failed',
  );
}
