import { LRUCache } from 'lru-cache';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { TagRow } from '../../store/catalog/tables/tags.ts';
import type { RegistryClient } from '../../upstream/registry-client.ts';
import type { Clock } from '../../util/clock.ts';
import { Deadline } from '../../util/deadline.ts';
import { MirrorError, toMirrorError } from '../../util/errors.ts';
import { Flight } from '../../util/flight.ts';
import type { Links } from '../access/links.ts';
import { answerWith, leaseFor, wantsNoBytes, type Answer, type TimedRequest } from '../answer.ts';
import { deadlineExceeded, isReadable } from '../in-time.ts';
import type { Manifests } from '../manifests.ts';
import type { Upstreams } from '../upstreams.ts';
import { isFresh, isServableStale, mayRevalidateBehind, type MirrorSettings } from './freshness.ts';
import type { Negatives } from './negatives.ts';
import type { StaleTags } from './stale.ts';
import type { Tags } from './tags.ts';

const maxFailedRefreshes = 10_000;

export interface TagResolverContext {
  readonly clock: Clock;
  readonly store: BlobStore;
  readonly links: Links;
  readonly tags: Tags;
  readonly manifests: Manifests;
  readonly stale: StaleTags;
  readonly negatives: Negatives;
  readonly upstreams: Upstreams;
}

/**
 * Manifests by tag. Within its TTL a tag resolves from the cache; after that, one HEAD revalidates it for all waiting
 * clients. While the upstream cannot be asked, the tag is served stale.
 */
export class TagResolver {
  readonly #settings: () => MirrorSettings;
  readonly #context: TagResolverContext;
  readonly #flights = new Flight<string, TagRow>();
  /** Tags being revalidated in the background. */
  readonly #refreshing = new Set<string>();
  /** Tags whose background revalidation failed: the next client waits for the upstream. */
  readonly #failedRefreshes = new LRUCache<string, true>({ max: maxFailedRefreshes });

  constructor(settings: () => MirrorSettings, context: TagResolverContext) {
    this.#settings = settings;
    this.#context = context;
  }

  async answer(repo: Repo, tag: string, request: TimedRequest): Promise<Answer> {
    const { clock, tags, upstreams, manifests, stale } = this.#context;
    const known = tags.get(repo, tag);
    const ttlMs = upstreams.of(repo).ttlOf(repo, tag);
    const fresh = known !== undefined && isFresh(known.checkedAt, clock.now(), ttlMs);
    try {
      if (fresh) {
        const hit = manifests.hitAtOnce(repo, known.digest, request);
        const reason = known.isUpstreamStale ? 'upstream-stale' : 'tag-fresh';
        if (hit) return { ...hit, reason, ageMs: clock.now() - known.registryCheckedAt };
      }
      if (known && mayRevalidateBehind(known.checkedAt, clock.now(), ttlMs, this.#settings().tags)) {
        const early = await this.#answerEarly(repo, tag, known, fresh, request);
        if (early) return early;
      }
      const row = fresh ? known : await this.#resolve(repo, tag, request.deadline);
      return await this.#answerFrom(repo, tag, row, fresh, request);
    } catch (error) {
      const row = tags.get(repo, tag);
      const fault = toMirrorError(error);
      const served = row && (await stale.answer(repo, row, request, fault));
      if (served) return served;
      const absentSince = fault.row.stale ? tags.absentSince(repo, tag) : undefined;
      if (absentSince !== undefined && isServableStale(absentSince, clock.now(), this.#settings().tags))
        throw new MirrorError('manifest-unknown', `${repo.key}:${tag}: not found when last checked`, {
          cause: error,
        });
      throw error;
    }
  }

  /** `fresh`: the row is within its TTL; else the upstream has just confirmed it. */
  async #answerFrom(
    repo: Repo,
    tag: string,
    row: TagRow,
    fresh: boolean,
    request: TimedRequest,
  ): Promise<Answer> {
    const { clock, manifests, stale } = this.#context;
    const ageMs = clock.now() - row.registryCheckedAt;
    if (wantsNoBytes(request, row.digest) && !manifests.holds(row.digest)) {
      // A client that is told a digest that cannot be pulled now would not use the cached one.
      const spent = this.#upstreamOf(repo).accounts.spent(repo, `${repo.key}:${tag}`);
      const served = spent && (await stale.answer(repo, row, request, spent));
      if (served) return served;
      // The row answers the HEAD; a pull is spent only on clients that want the bytes.
      const { digest, mediaType, size } = row;
      const stated = { digest, mediaType, size, result: fresh ? 'hit' : 'miss', ageMs } as const;
      return row.isUpstreamStale ? { ...stated, reason: 'upstream-stale' } : stated;
    }
    const found = await manifests
      .answer(repo, row.digest, request)
      .catch((error: unknown) => this.#fetchAgain(repo, tag, error, request));
    if (found.result !== 'hit')
      return row.isUpstreamStale ? { ageMs, reason: 'upstream-stale', ...found } : { ageMs, ...found };
    const reason = row.isUpstreamStale ? 'upstream-stale' : fresh ? 'tag-fresh' : undefined;
    const result = fresh ? 'hit' : 'revalidated';
    return reason === undefined ? { ...found, result, ageMs } : { ...found, result, ageMs, reason };
  }

  /** An answer before the upstream is asked, if allowed: the tag's current or previous digest. */
  async #answerEarly(
    repo: Repo,
    tag: string,
    known: TagRow,
    fresh: boolean,
    request: TimedRequest,
  ): Promise<Answer | undefined> {
    const { clock, links, manifests, store } = this.#context;
    const key = `${repo.key}:${tag}`;
    const isRunning = this.#refreshing.has(key);
    if (!isRunning && (fresh || this.#failedRefreshes.has(key))) return undefined;
    const digest = [known.digest, known.previous].find((each) => each !== null && manifests.holds(each));
    if (!digest || !links.grants(repo, digest)) return undefined;
    const held = leaseFor(store, digest, request);
    if (!held || !(await isReadable(held, request.deadline))) return undefined;
    if (!isRunning) void this.#refresh(repo, tag);
    const reason = fresh && digest === known.digest ? 'tag-fresh' : 'revalidated-behind';
    return { ...answerWith(held, 'hit'), reason, ageMs: clock.now() - known.registryCheckedAt };
  }

  /** Revalidates the tag in the background, and pulls its manifest if the quota reserve allows. */
  async #refresh(repo: Repo, tag: string): Promise<void> {
    const { manifests } = this.#context;
    const key = `${repo.key}:${tag}`;
    const deadline = new Deadline(this.#settings().firstByteTimeoutMs);
    this.#refreshing.add(key);
    try {
      const { digest } = await this.#resolve(repo, tag, deadline);
      this.#failedRefreshes.delete(key);
      if (manifests.holds(digest)) return;
      if (!this.#upstreamOf(repo).accounts.mayPullAhead(repo)) {
        // The reserve is for clients: the next one pulls it.
        this.#failedRefreshes.set(key, true);
        return;
      }
      const { value } = await manifests.fetch(repo, digest, deadline);
      value.release();
    } catch {
      // The next client waits for the upstream, and gets the fault.
      this.#failedRefreshes.set(key, true);
    } finally {
      this.#refreshing.delete(key);
    }
  }

  #resolve(repo: Repo, tag: string, deadline: Deadline): Promise<TagRow> {
    const key = `${repo.key}:${tag}`;
    return this.#context.negatives.unlessKnownAbsent(key, () =>
      this.#shared(key, deadline, (shared) => this.#revalidate(repo, tag, shared)),
    );
  }

  async #shared(
    key: string,
    deadline: Deadline,
    work: (shared: Deadline) => Promise<TagRow>,
  ): Promise<TagRow> {
    const { value } = await this.#flights.within(key, deadline, work, () => deadlineExceeded(key));
    return value;
  }

  /** Revalidates the tag by HEAD, which does not count as a pull. Falls back to GET if HEAD gives no usable answer. */
  async #revalidate(repo: Repo, tag: string, deadline: Deadline): Promise<TagRow> {
    const { tags, links, store } = this.#context;
    try {
      const head = await this.#upstreamOf(repo).head(repo, tag, deadline.signal);
      // A size that differs from the stored manifest's is wrong: the GET decides.
      const stored = head && store.describe(head.digest);
      if (head && (!stored || stored.size === head.size)) {
        // Only stored manifests get a link: the GET writes the others', and no links pile up for manifests never pulled.
        if (stored && !isFromPattern(repo)) links.confirm(repo, head.digest, head);
        return tags.set(repo, tag, head);
      }
      return await this.#fetch(repo, tag, deadline);
    } catch (error) {
      const { definite } = toMirrorError(error).row;
      if (definite && this.#settings().tags.whenGone === '404') tags.remove(repo, tag);
      if (definite) tags.recordAbsent(repo, tag);
      throw error;
    }
  }

  /** Pulls the manifest by its tag: the response decides what the tag points to. */
  async #fetch(repo: Repo, tag: string, { signal }: Deadline): Promise<TagRow> {
    const { tags, manifests } = this.#context;
    const manifest = await this.#upstreamOf(repo).manifest(repo, tag, signal);
    const { mediaType } = manifests.put(repo, manifest);
    return tags.set(repo, tag, { ...manifest, mediaType: mediaType || manifest.mediaType });
  }

  /** The digest that the tag pointed to is not there: the tag has moved, or the HEAD was wrong. The GET decides. */
  async #fetchAgain(repo: Repo, tag: string, error: unknown, request: TimedRequest): Promise<Answer> {
    const { row, fault } = toMirrorError(error);
    if (!row.definite && fault !== 'digest-mismatch' && fault !== 'upstream-invalid') throw error;
    const get = (shared: Deadline): Promise<TagRow> => this.#fetch(repo, tag, shared);
    const { digest } = await this.#shared(`GET ${repo.key}:${tag}`, request.deadline, get);
    return { ...(await this.#context.manifests.answer(repo, digest, request)), result: 'miss', ageMs: 0 };
  }

  #upstreamOf(repo: Repo): RegistryClient {
    return this.#context.upstreams.of(repo).client;
  }
}
