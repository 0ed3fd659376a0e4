import type { Repo } from '../oci/repo.ts';
import { ociIndex } from '../oci/manifest.ts';
import { digestOf } from '../oci/digest.ts';
import type { Catalog, ListRow } from '../store/catalog.ts';
import type { ListOf } from '../upstream/registry-client.ts';
import type { Clock } from '../util/clock.ts';
import { MirrorError, toMirrorError } from '../util/errors.ts';
import { Flight } from '../util/flight.ts';
import type { Logger } from '../util/log.ts';
import { isFresh, isServableStale, type TagPolicy } from './freshness.ts';
import type { Answer, Method, Result } from './mirror.ts';
import { Negatives } from './negatives.ts';
import type { Upstreams } from './upstreams.ts';

/** What is being sent to clients, who may be slow. */
const maxHeldBytes = 64 * 1024 * 1024;
/** More at once some registries refuse; there is a next page. */
const maxPage = 1000;

export interface ListAnswer extends Omit<Answer, 'content'> {
  readonly content: Buffer | undefined;
  /** The query of the page after it. */
  readonly next: string | undefined;
  /** What the upstream says that it has filtered by. */
  readonly filters: string | undefined;
}

export interface ListsOptions {
  firstByteTimeoutMs: number;
  tags: TagPolicy;
}

export interface ListsContext {
  readonly catalog: Catalog;
  readonly upstreams: Upstreams;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Pages of tags and of referrers, as the upstream gives them: believed for a while, asked for once however many want
 * them, and served as they were while it cannot be asked. What is not a list is never taken for an empty one.
 */
export class Lists {
  readonly #options: ListsOptions;
  readonly #context: ListsContext;
  readonly #negatives: Negatives;
  readonly #asking = new Flight<string, ListRow>();
  #heldBytes = 0;

  constructor(options: ListsOptions, context: ListsContext) {
    this.#options = options;
    this.#context = context;
    this.#negatives = new Negatives(options.tags, context.clock);
  }

  /** Throws `page-invalid`, `repo-unknown`, `manifest-unknown`, or why the upstream cannot be asked. */
  async answer(repo: Repo, of: ListOf, query: URLSearchParams, method: Method): Promise<ListAnswer> {
    const { clock } = this.#context;
    const { wanted, isNone } = pageOf(query);
    const page = nameOf(of, wanted);
    const known = this.#known(repo, page);
    const respond = (row: ListRow, result: Result, reason?: string): ListAnswer =>
      answer(
        of,
        isNone ? none(repo, row) : row,
        { result, reason, ageMs: clock.now() - row.checkedAt },
        method,
      );
    if (known && isFresh(known.checkedAt, clock.now(), this.#ttlOf(repo, of))) return respond(known, 'hit');
    const key = `${repo.key}/${page}`;
    this.#negatives.check(key);
    try {
      const { outcome, joined } = this.#asking.run(key, () => this.#ask(repo, of, wanted, page));
      const row = await outcome;
      return respond(row, joined ? 'joined' : known ? 'revalidated' : 'miss');
    } catch (error) {
      const { row, fault } = toMirrorError(error);
      if (row.definite) this.#negatives.note(key, toMirrorError(error));
      else if (row.stale && known && isServableStale(known.checkedAt, clock.now(), this.#options.tags))
        return respond(known, 'stale', fault);
      throw error;
    }
  }

  /** Memory for a page until what it returns is called, once. Throws `overloaded`. */
  hold(size: number): () => void {
    if (this.#heldBytes + size > maxHeldBytes)
      throw new MirrorError('overloaded', 'too many lists are being sent', { retryAfterMs: 1000 });
    this.#heldBytes += size;
    return () => {
      this.#heldBytes -= size;
    };
  }

  async #ask(repo: Repo, of: ListOf, query: URLSearchParams, page: string): Promise<ListRow> {
    const { upstreams, clock } = this.#context;
    const deadline = AbortSignal.timeout(this.#options.firstByteTimeoutMs);
    try {
      const { bytes, next, filters } = await upstreams.of(repo).client.list(repo, of, query, deadline);
      const row = { body: bytes, next, filters, checkedAt: clock.now() };
      this.#write(repo, (catalog) => catalog.setList(repo, page, row));
      return row;
    } catch (error) {
      const isNone = toMirrorError(error).row.definite === true;
      const none = { body: null, next: null, filters: null, checkedAt: clock.now() };
      // A registry without lists of referrers has none while it is down either: clients look for a tag then.
      if (isNone && of.kind === 'referrers')
        this.#write(repo, (catalog) => catalog.setList(repo, page, none));
      else if (isNone) this.#write(repo, (catalog) => catalog.removeList(repo, page));
      throw error;
    }
  }

  #known(repo: Repo, page: string): ListRow | undefined {
    try {
      return this.#context.catalog.list(repo, page);
    } catch (error) {
      this.#context.log.warn({ err: error, repo: repo.key }, 'a list could not be read');
      return undefined;
    }
  }

  #write(repo: Repo, write: (catalog: Catalog) => void): void {
    try {
      write(this.#context.catalog);
    } catch (error) {
      this.#context.log.warn({ err: error, repo: repo.key }, 'a list could not be written');
    }
  }

  /** As long as a tag; what refers to a manifest as long as the tag that would say it where there are no lists. */
  #ttlOf(repo: Repo, of: ListOf): number {
    const tag = of.kind === 'tags' ? '' : of.digest.replace(':', '-').slice(0, 71);
    return this.#context.upstreams.of(repo).ttlOf(repo, tag);
  }
}

/** What the upstream is asked for, and whether nothing of it is wanted. Throws `page-invalid`. */
function pageOf(query: URLSearchParams): { wanted: URLSearchParams; isNone: boolean } {
  const [n, more] = query.getAll('n');
  if (n === undefined) return { wanted: query, isNone: false };
  if (more !== undefined || !/^\d+$/.test(n))
    throw new MirrorError(
      'page-invalid',
      `query: n=${JSON.stringify(n.slice(0, 50))}: expected one whole number`,
    );
  const wanted = new URLSearchParams(query);
  // Whether there is such a repo is to be known all the same.
  wanted.set('n', String(Math.min(Math.max(Number(n), 1), maxPage)));
  return { wanted, isNone: Number(n) === 0 };
}

function nameOf(of: ListOf, query: URLSearchParams): string {
  return `${of.kind === 'tags' ? 'tags/list' : `referrers/${of.digest}`}?${query.toString()}`;
}

function none(repo: Repo, row: ListRow): ListRow {
  return { ...row, body: Buffer.from(JSON.stringify({ name: repo.name, tags: [] })), next: null };
}

function answer(
  of: ListOf,
  { body, next, filters }: ListRow,
  how: { result: Result; reason: string | undefined; ageMs: number },
  method: Method,
): ListAnswer {
  if (!body) {
    const digest = of.kind === 'referrers' ? of.digest : '';
    throw new MirrorError('manifest-unknown', `referrers of ${digest}: the upstream keeps no list of them`);
  }
  const { reason, ...rest } = how;
  const digest = digestOf(body);
  const mediaType = of.kind === 'tags' ? 'application/json' : ociIndex;
  return {
    digest,
    mediaType,
    size: body.length,
    ...rest,
    ...(reason !== undefined && { reason }),
    content: method === 'GET' ? body : undefined,
    next: next ?? undefined,
    filters: filters ?? undefined,
  };
}
