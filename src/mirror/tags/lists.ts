import { LRUCache } from 'lru-cache';
import { digestOf } from '../../oci/digest.ts';
import { ociIndex } from '../../oci/manifest.ts';
import type { Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Catalog } from '../../store/catalog/catalog.ts';
import type { ListRow, ListTable } from '../../store/catalog/tables/lists.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { ListOf } from '../../upstream/repo-requests.ts';
import type { Clock } from '../../util/clock.ts';
import { Deadline } from '../../util/deadline.ts';
import { MirrorError, toMirrorError } from '../../util/errors.ts';
import { Flight } from '../../util/flight.ts';
import type { Answer, Method, Result } from '../answer.ts';
import { deadlineExceeded } from '../in-time.ts';
import type { Upstreams } from '../upstreams.ts';
import { isFresh, isServableStale, type MirrorSettings } from './freshness.ts';
import { Negatives } from './negatives.ts';

/** Pages being sent to clients, which may be slow. */
const maxReservedBytes = 64 * 1024 * 1024;
/** Cache of pages in use, shared by parallel requests. */
const maxSharedBytes = 16 * 1024 * 1024;
/** Some registries refuse larger pages; clients follow the next link. */
const maxPage = 1000;
const maxParameters = 10;

export interface ListAnswer extends Omit<Answer, 'content'> {
  /** Absent for HEAD. */
  readonly content: Buffer | undefined;
  /** Query string of the next page. */
  readonly next: string | undefined;
  /** The upstream's `OCI-Filters-Applied`. */
  readonly filters: string | undefined;
}

export interface ListsContext {
  readonly store: BlobStore;
  readonly upstreams: Upstreams;
  readonly clock: Clock;
  readonly log: Logger;
}

/** A requested page, normalized for the upstream. */
interface Page {
  readonly of: ListOf;
  readonly query: URLSearchParams;
  /** The cache key within the repo. */
  readonly name: string;
  /** `n=0`: only the repo's existence is checked. */
  readonly isExistenceCheck: boolean;
}

/**
 * Pages of tags and referrers, as the upstream serves them: cached for a TTL, requested once for all waiting clients,
 * and served stale while the upstream cannot be asked. An invalid page is never treated as an empty list.
 */
export class Lists {
  readonly #settings: () => MirrorSettings;
  readonly #context: ListsContext;
  readonly #catalog: Catalog;
  readonly #negatives: Negatives;
  readonly #flights = new Flight<string, ListRow>();
  readonly #bodies = new LRUCache<string, Buffer>({
    maxSize: maxSharedBytes,
    sizeCalculation: (body) => body.length + 1,
  });
  #reservedBytes = 0;

  constructor(settings: () => MirrorSettings, context: ListsContext) {
    this.#settings = settings;
    this.#context = context;
    this.#catalog = context.store.catalog;
    this.#negatives = new Negatives(() => settings().tags, context.clock);
  }

  /** Throws `page-invalid`, `repo-unknown`, `manifest-unknown`, `overloaded`, or the upstream's fault. */
  async answer(repo: Repo, of: ListOf, query: URLSearchParams, method: Method): Promise<ListAnswer> {
    const { clock } = this.#context;
    const page = pageOf(of, query);
    const cached = this.#cached(repo, page);
    const respond = (row: ListRow, result: Result, reason?: string): ListAnswer =>
      this.#respond(repo, page, row, method, { result, ...(reason !== undefined && { reason }) });
    if (cached && isFresh(cached.checkedAt, clock.now(), this.#effectiveTtlOf(repo, page, cached)))
      return respond(cached, 'hit');
    try {
      const { value, joined } = await this.#revalidate(repo, page);
      return respond(value, joined ? 'joined' : cached ? 'revalidated' : 'miss');
    } catch (error) {
      const { row, fault } = toMirrorError(error);
      if (row.stale && cached && isServableStale(cached.checkedAt, clock.now(), this.#settings().tags))
        return respond(cached, 'stale', fault);
      throw error;
    }
  }

  #revalidate(repo: Repo, page: Page): Promise<{ value: ListRow; joined: boolean }> {
    const key = `${repo.key}/${page.name}`;
    const deadline = new Deadline(this.#settings().firstByteTimeoutMs);
    const fetch = ({ signal }: Deadline): Promise<ListRow> => this.#fetch(repo, page, signal);
    return this.#negatives.unlessKnownAbsent(key, () =>
      this.#flights.within(key, deadline, fetch, () => deadlineExceeded(`GET ${key}`)),
    );
  }

  /** Reserves memory for a page; the returned function releases it and is called once. Throws `overloaded`. */
  reserveMemory(size: number): () => void {
    if (this.#reservedBytes + size > maxReservedBytes)
      throw new MirrorError('overloaded', 'too many lists are being sent', { retryAfterMs: 1000 });
    this.#reservedBytes += size;
    return () => {
      this.#reservedBytes -= size;
    };
  }

  async #fetch(repo: Repo, { of, query, name }: Page, signal: AbortSignal): Promise<ListRow> {
    const { upstreams, clock } = this.#context;
    try {
      const { bytes, next, filters } = await upstreams.of(repo).client.list(repo, of, query, signal);
      const digest = digestOf(bytes);
      const row = {
        digest,
        size: bytes.length,
        next: withPageSize(next, query),
        filters,
        checkedAt: clock.now(),
      };
      this.#bodies.set(digest, bytes);
      if (this.#isPersisted(of))
        this.#write(repo, (lists) => lists.set(repo, name, row, bytes), bytes.length);
      return row;
    } catch (cause) {
      const error = toMirrorError(cause);
      if (!error.row.definite) throw error;
      if (of.kind === 'tags') {
        this.#write(repo, (lists) => lists.removeWithPrefix(repo, 'tags/'));
        throw error;
      }
      // Remembered for stored subjects: clients of a registry without a referrers API then use the tag schema, also
      // while it is down.
      const isAbsenceCertain = error.fault === 'manifest-unknown' && this.#isPersisted(of);
      if (isAbsenceCertain) this.#write(repo, (lists) => lists.setAbsent(repo, name, clock.now()));
      // On NAME_UNKNOWN some clients would not fall back to the tag schema.
      throw new MirrorError('manifest-unknown', error.message, { cause: error });
    }
  }

  #respond(
    repo: Repo,
    { of, name, isExistenceCheck }: Page,
    row: ListRow,
    method: Method,
    how: { result: Result; reason?: string },
  ): ListAnswer {
    const { size, filters } = row;
    if (row.digest === null) {
      const what = of.kind === 'referrers' ? `referrers of ${of.digest}` : name;
      throw new MirrorError('manifest-unknown', `${repo.key} ${what}: the upstream has no such list`);
    }
    const mediaType = of.kind === 'tags' ? 'application/json' : ociIndex;
    const ageMs = this.#context.clock.now() - row.checkedAt;
    const common = { ...how, mediaType, ageMs, filters: filters ?? undefined };
    if (isExistenceCheck) {
      const empty = Buffer.from(JSON.stringify({ name: repo.name, tags: [] }));
      const content = method === 'GET' ? empty : undefined;
      return { ...common, digest: digestOf(empty), size: empty.length, content, next: undefined };
    }
    const content = method === 'GET' ? this.#body(repo, name, row.digest) : undefined;
    return { ...common, digest: row.digest, size, content, next: row.next ?? undefined };
  }

  #body(repo: Repo, name: string, digest: string): Buffer {
    const cached = this.#bodies.get(digest);
    if (cached) return cached;
    const body = this.#catalog.lists.body(repo, name);
    if (!body) throw new MirrorError('overloaded', `${repo.key} ${name}: list evicted while being read`);
    this.#bodies.set(digest, body);
    return body;
  }

  /** Clients can name any digest, so only referrers of stored manifests are written to the catalog. */
  #isPersisted(of: ListOf): boolean {
    return of.kind === 'tags' || this.#context.store.describe(of.digest) !== undefined;
  }

  #cached(repo: Repo, { name }: Page): ListRow | undefined {
    try {
      return this.#catalog.lists.get(repo, name);
    } catch (error) {
      this.#context.log.warn({ err: error, repo: repo.key }, 'list not readable');
      return undefined;
    }
  }

  #write(repo: Repo, write: (lists: ListTable) => void, bytes = 0): void {
    this.#context.store.writeLists(write, bytes).catch((error: unknown) => {
      this.#context.log.warn({ err: error, repo: repo.key }, 'list not written');
    });
  }

  /** TTL in ms. An empty list lives no longer than a negative answer, so that a new push is soon visible. */
  #effectiveTtlOf(repo: Repo, { of, name }: Page, row: ListRow): number {
    const ttlMs = this.#ttlOf(repo, of);
    const isEmpty =
      row.digest === null || (row.size <= maxEmptyBytes && isEmptyList(this.#body(repo, name, row.digest)));
    return isEmpty ? Math.min(ttlMs, this.#settings().tags.negativeTtlMs) : ttlMs;
  }

  /** The TTL of tags; for referrers, that of the tag in the referrers tag schema. */
  #ttlOf(repo: Repo, of: ListOf): number {
    const tag = of.kind === 'tags' ? '' : of.digest.replace(':', '-').slice(0, 71);
    return this.#context.upstreams.of(repo).ttlOf(repo, tag);
  }
}

/** Larger lists are never empty; bytes. */
const maxEmptyBytes = 1024;

function isEmptyList(body: Buffer): boolean {
  const { tags, manifests } = JSON.parse(body.toString()) as { tags?: unknown; manifests?: unknown };
  const entries = tags ?? manifests;
  return !Array.isArray(entries) || entries.length === 0;
}

/** Throws `page-invalid`. */
function pageOf(of: ListOf, query: URLSearchParams): Page {
  if (query.size > maxParameters)
    throw new MirrorError('page-invalid', `query: more than ${maxParameters} parameters`);
  const normalized = new URLSearchParams(query);
  // The order of parameters does not matter.
  normalized.sort();
  const [n, more] = normalized.getAll('n');
  if (more !== undefined || (n !== undefined && !/^\d+$/.test(n)))
    throw new MirrorError(
      'page-invalid',
      `query: n=${JSON.stringify(n?.slice(0, 50))}: expected one whole number`,
    );
  // The upstream is asked for n=1 at least, to learn whether the repo exists.
  if (n !== undefined) normalized.set('n', String(Math.min(Math.max(Number(n), 1), maxPage)));
  const list = of.kind === 'tags' ? 'tags/list' : `referrers/${of.digest}`;
  const isExistenceCheck = of.kind === 'tags' && n !== undefined && Number(n) === 0;
  return { of, query: normalized, name: `${list}?${normalized.toString()}`, isExistenceCheck };
}

/** Keeps the client's page size in the query of the next page. */
function withPageSize(next: string | null, requested: URLSearchParams): string | null {
  const n = requested.get('n');
  if (next === null || n === null) return next;
  const query = new URLSearchParams(next);
  if (!query.has('n')) query.set('n', n);
  return query.toString();
}
