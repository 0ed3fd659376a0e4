import { LRUCache } from 'lru-cache';
import { blobMediaType, type Content, type Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { parseManifest, unnamedType, usualType, type Child } from '../oci/manifest.ts';
import { isWholeWant, type Want } from '../oci/range.ts';
import { isFromPattern, type Repo } from '../oci/repo.ts';
import type { Reference } from '../oci/route.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { TagRow } from '../store/catalog/catalog.ts';
import { MemoryContent } from '../store/reading/stored-content.ts';
import type { RegistryClient, UpstreamManifest } from '../upstream/registry-client.ts';
import type { Clock } from '../util/clock.ts';
import { Deadline } from '../util/deadline.ts';
import { isFault, MirrorError, toMirrorError } from '../util/errors.ts';
import { Flight } from '../util/flight.ts';
import type { Access } from './access/links.ts';
import { Proofs } from './access/proofs.ts';
import type { Answer, Asked, Question, Result } from './answer.ts';
import type { Fills } from './fill/fills.ts';
import type { Prefetch } from './fill/prefetch.ts';
import { isFresh, isFreshEnough, isServableStale, type TagPolicy } from './tags/freshness.ts';
import { Negatives } from './tags/negatives.ts';
import type { Tags } from './tags/tags.ts';
import { isWhole } from './tags/wholeness.ts';
import type { Upstreams } from './upstreams.ts';

const maxUnrefreshed = 10_000;
/** For what is served stale when the time is over. */
const leastReadMs = 1000;
const largeManifestBytes = 1024 * 1024;

/** What a request has been shown to be entitled to: the stored content, or what is arriving from its own registry. */
type Proven = 'stored' | 'arriving' | undefined;

export interface MirrorOptions {
  firstByteTimeoutMs: number;
  tags: TagPolicy;
}

export interface MirrorContext {
  readonly clock: Clock;
  readonly store: BlobStore;
  readonly fills: Fills;
  readonly access: Access;
  readonly tags: Tags;
  readonly upstreams: Upstreams;
  /** Absent: nothing is fetched before somebody asks for it. */
  readonly prefetch: Prefetch | undefined;
}

/**
 * What it has, it serves from the store. What it lacks, it streams from the upstream while writing it down, once,
 * however many ask. What a tag points to it asks when its time is up, and serves as it was while the upstream cannot
 * say. Nobody gets content of a repo that the upstream has not given or confirmed for that repo.
 */
export class Mirror {
  readonly #options: MirrorOptions;
  readonly #context: MirrorContext;
  readonly #store: BlobStore;
  readonly #negatives: Negatives;
  readonly #manifests = new Flight<string, Content>();
  readonly #revalidations = new Flight<string, TagRow>();
  readonly #proofs: Proofs;
  /** Tags about which the upstream is being asked behind the answer. */
  readonly #refreshing = new Set<string>();
  /** Tags about which the upstream could not be asked behind the answer. */
  readonly #unrefreshed = new LRUCache<string, true>({ max: maxUnrefreshed });

  constructor(options: MirrorOptions, context: MirrorContext) {
    this.#options = options;
    this.#context = context;
    this.#store = context.store;
    this.#proofs = new Proofs(context);
    this.#negatives = new Negatives(options.tags, context.clock);
  }

  async manifest(repo: Repo, reference: Reference, asked: Asked): Promise<Answer> {
    const question = this.#question(asked);
    const found = await ('digest' in reference
      ? this.#manifest(repo, reference.digest, question)
      : this.#tag(repo, reference.tag, question));
    if (asked.method === 'GET') this.#context.prefetch?.served(asked.client, repo, found.digest);
    if (found.mediaType !== unnamedType) return found;
    return { ...found, mediaType: this.#typeFor(repo, found.digest) };
  }

  /** Of a manifest whose bytes name no type. */
  #typeFor(repo: Repo, digest: Digest): string {
    return this.#context.access.typeOf(repo, digest) ?? usualType(this.#store.children(digest));
  }

  /** `want`: the part of it that is asked for. */
  async blob(repo: Repo, digest: Digest, asked: Asked, want: Want): Promise<Answer> {
    const { fills } = this.#context;
    const question = this.#question(asked);
    const { deadline } = question;
    return this.#unlessKnownAbsent(`${repo.key} blob ${digest}`, async () => {
      for (let proven: Proven; ;) {
        const way = this.#way(repo, digest, proven, deadline);
        if (way instanceof Promise) {
          proven = await inTime(way, deadline, `${repo.key} blob ${digest}`);
          continue;
        }
        // From the look-up to the lease nothing waits: the content is in one of the two, or in neither.
        const held = way === 'store' ? this.#lease(digest, question) : undefined;
        if (held) {
          this.#askedFor(repo, digest, asked, want, 'hit');
          if (isWholeWant(want) && 'copyTo' in held) this.#store.taken(digest, asked.client);
          if (await isReadable(held, deadline)) return { ...answer(held, 'hit'), mediaType: blobMediaType };
        } else if (wantsNoBytes(question, digest)) return await this.#headOfBlob(repo, digest, deadline);
        else {
          const { content, result } = fills.join(repo, digest, want);
          this.#askedFor(repo, digest, asked, want, result);
          return answer(await readyInTime(content, deadline, `GET ${repo.key} blob ${digest}`), result);
        }
      }
    });
  }

  /** Of what is not stored: what is arriving has told its size. */
  async #headOfBlob(repo: Repo, digest: Digest, { signal }: Deadline): Promise<Answer> {
    const arriving = this.#context.fills.of(repo, digest)?.size;
    if (arriving !== undefined) return { digest, mediaType: blobMediaType, size: arriving, result: 'joined' };
    const { size } = await this.#upstreamOf(repo).headBlob(repo, digest, signal);
    return { digest, mediaType: blobMediaType, size, result: 'miss' };
  }

  #askedFor(repo: Repo, digest: Digest, { method, client }: Asked, want: Want, result: Result): void {
    if (method === 'GET' && want === 'whole')
      this.#context.prefetch?.asked(client, repo, digest, result === 'miss');
  }

  async #manifest(repo: Repo, digest: Digest, question: Question): Promise<Answer> {
    const { deadline } = question;
    const { access } = this.#context;
    return this.#unlessKnownAbsent(`${repo.key} manifest ${digest}`, async () => {
      for (let proven: Proven; this.#holdsManifest(digest);) {
        if (proven !== 'stored' && !access.grants(repo, digest)) {
          proven = await this.#prove(repo, digest, 'manifest', deadline);
          continue;
        }
        const held = this.#lease(digest, question);
        if (!held || !(await isReadable(held, deadline))) continue;
        const isKnown = held.mediaType !== unnamedType || access.typeOf(repo, digest) !== undefined;
        if (isKnown || proven === 'stored') return answer(held, 'hit');
        // As what this repo's upstream gives it has still to be asked.
        if ('release' in held) held.release();
        proven = await this.#prove(repo, digest, 'manifest', deadline);
      }
      if (wantsNoBytes(question, digest)) {
        // A GET would cost a pull, and the client has not asked for the bytes.
        const said = await this.#upstreamOf(repo).head(repo, digest, deadline.signal);
        if (said) return { digest, mediaType: said.mediaType, size: said.size, result: 'miss' };
      }
      const { value, joined } = await this.#fetch(repo, digest, deadline);
      return answer(await this.#outOfMemory(value, deadline), joined ? 'joined' : 'miss');
    });
  }

  /** What is large is sent from its file: however slow its clients are, memory is for others. */
  async #outOfMemory(fetched: Content, deadline: Deadline): Promise<Content> {
    const { digest, size = 0 } = fetched;
    if (size <= largeManifestBytes) return fetched;
    await inTime(this.#store.settled(digest), deadline, `manifest ${digest}`);
    const stored = this.#store.open(digest);
    return stored && (await isReadable(stored, deadline)) ? stored : fetched;
  }

  async #tag(repo: Repo, tag: string, question: Question): Promise<Answer> {
    const { clock, tags, upstreams } = this.#context;
    const known = tags.get(repo, tag);
    const ttlMs = upstreams.of(repo).ttlOf(repo, tag);
    const fresh = known !== undefined && isFresh(known.checkedAt, clock.now(), ttlMs);
    try {
      if (known && isFreshEnough(known.checkedAt, clock.now(), ttlMs, this.#options.tags)) {
        const behind = await this.#beforeAsking(repo, tag, known, fresh, question);
        if (behind) return behind;
      }
      const row = fresh ? known : await this.#askTag(repo, tag, question.deadline);
      const ageMs = clock.now() - row.saidAt;
      if (wantsNoBytes(question, row.digest) && !this.#holdsManifest(row.digest)) {
        // Whoever is told of what cannot be pulled now would not take what is held.
        const spent = this.#upstreamOf(repo).accounts.spent(repo, `${repo.key}:${tag}`);
        const stale = spent && (await this.#stale(repo, row, question, spent));
        if (stale) return stale;
        // The row has all that a HEAD wants, and a pull is spent only on who asks for the bytes.
        const { digest, mediaType, size } = row;
        const stated = { digest, mediaType, size, result: fresh ? 'hit' : 'miss', ageMs } as const;
        return row.isUpstreamStale ? { ...stated, reason: 'upstream-stale' } : stated;
      }
      const found = await this.#manifest(repo, row.digest, question).catch((error: unknown) =>
        this.#refetch(repo, tag, error, question),
      );
      if (found.result !== 'hit')
        return row.isUpstreamStale ? { ageMs, reason: 'upstream-stale', ...found } : { ageMs, ...found };
      const reason = row.isUpstreamStale ? 'upstream-stale' : fresh ? 'tag-fresh' : undefined;
      const result = fresh ? 'hit' : 'revalidated';
      return reason === undefined ? { ...found, result, ageMs } : { ...found, result, ageMs, reason };
    } catch (error) {
      const row = tags.get(repo, tag);
      const fault = toMirrorError(error);
      const stale = row && (await this.#stale(repo, row, question, fault));
      if (stale) return stale;
      const absentSince = fault.row.stale ? tags.absentSince(repo, tag) : undefined;
      if (absentSince !== undefined && isServableStale(absentSince, clock.now(), this.#options.tags))
        throw new MirrorError('manifest-unknown', `${repo.key}:${tag}: there was none`, { cause: error });
      throw error;
    }
  }

  /** What is served before the upstream is asked, if that may be: the tag as it is known, or as it was before. */
  async #beforeAsking(
    repo: Repo,
    tag: string,
    known: TagRow,
    fresh: boolean,
    question: Question,
  ): Promise<Answer | undefined> {
    const { clock, access } = this.#context;
    const key = `${repo.key}:${tag}`;
    const isRunning = this.#refreshing.has(key);
    if (!isRunning && (fresh || this.#unrefreshed.has(key))) return undefined;
    const digest = [known.digest, known.previous].find((each) => each !== null && this.#holdsManifest(each));
    if (!digest || !access.grants(repo, digest)) return undefined;
    const held = this.#lease(digest, question);
    if (!held || !(await isReadable(held, question.deadline))) return undefined;
    if (!isRunning) void this.#refresh(repo, tag);
    const reason = fresh && digest === known.digest ? 'tag-fresh' : 'revalidated-behind';
    return { ...answer(held, 'hit'), reason, ageMs: clock.now() - known.saidAt };
  }

  /** Behind the answer: what the tag points to now, and that manifest, if a pull can be spared. */
  async #refresh(repo: Repo, tag: string): Promise<void> {
    const key = `${repo.key}:${tag}`;
    const deadline = this.#deadline();
    this.#refreshing.add(key);
    try {
      const { digest } = await this.#askTag(repo, tag, deadline);
      this.#unrefreshed.delete(key);
      if (this.#holdsManifest(digest) || !this.#upstreamOf(repo).accounts.mayPullAhead(repo)) return;
      const { value } = await this.#fetch(repo, digest, deadline);
      value.release();
    } catch {
      // Who asks next waits, and hears of what went wrong.
      this.#unrefreshed.set(key, true);
    } finally {
      this.#refreshing.delete(key);
    }
  }

  #askTag(repo: Repo, tag: string, deadline: Deadline): Promise<TagRow> {
    const key = `${repo.key}:${tag}`;
    const ask = (shared: Deadline): Promise<TagRow> => this.#revalidate(repo, tag, shared);
    return this.#unlessKnownAbsent(key, async () => {
      const { value } = await this.#revalidations.within(key, deadline, ask, () => late(key));
      return value;
    });
  }

  /** Asks what the tag points to: a HEAD costs no pull; the manifest follows by digest, if it is not held. */
  async #revalidate(repo: Repo, tag: string, deadline: Deadline): Promise<TagRow> {
    const { tags, access } = this.#context;
    const upstream = this.#upstreamOf(repo);
    try {
      const said = await upstream.head(repo, tag, deadline.signal);
      // A size that is not that of what is held has been made up.
      const held = said && this.#store.describe(said.digest);
      if (said && (!held || held.size === said.size)) {
        // Of what is not held a GET would say it: links to what may never come would be kept for ever.
        if (held && !isFromPattern(repo)) access.confirm(repo, said.digest, said);
        return tags.set(repo, tag, said);
      }
      return await this.#getTag(repo, tag, deadline);
    } catch (error) {
      const { definite } = toMirrorError(error).row;
      if (definite && this.#options.tags.whenGone === '404') tags.remove(repo, tag);
      if (definite) tags.absent(repo, tag);
      throw error;
    }
  }

  async #getTag(repo: Repo, tag: string, { signal }: Deadline): Promise<TagRow> {
    const manifest = await this.#upstreamOf(repo).manifest(repo, tag, signal);
    const { mediaType } = this.#keep(repo, manifest);
    return this.#context.tags.set(repo, tag, { ...manifest, mediaType: mediaType || manifest.mediaType });
  }

  /** What the tag was said to point to is not there: it has moved on, or its HEAD was wrong. The GET has the last word. */
  async #refetch(repo: Repo, tag: string, error: unknown, question: Question): Promise<Answer> {
    const { row, fault } = toMirrorError(error);
    if (!row.definite && fault !== 'digest-mismatch' && fault !== 'upstream-invalid') throw error;
    const key = `GET ${repo.key}:${tag}`;
    const { deadline } = question;
    const get = (shared: Deadline): Promise<TagRow> => this.#getTag(repo, tag, shared);
    const { value } = await this.#revalidations.within(key, deadline, get, () => late(key));
    return { ...(await this.#manifest(repo, value.digest, question)), result: 'miss', ageMs: 0 };
  }

  #fetch(repo: Repo, digest: Digest, deadline: Deadline): Promise<{ value: Content; joined: boolean }> {
    const key = `${repo.key}@${digest}`;
    const fetch = async ({ signal }: Deadline): Promise<Content> =>
      this.#keep(repo, await this.#upstreamOf(repo).manifest(repo, digest, signal));
    return this.#manifests.within(key, deadline, fetch, () => late(`GET ${key}`));
  }

  #keep(repo: Repo, manifest: UpstreamManifest): Content {
    const { digest, bytes } = manifest;
    try {
      const content = parseManifest(bytes, manifest.mediaType, `${repo.key} manifest ${digest}`);
      this.#context.access.confirm(repo, digest, manifest);
      const kept = this.#store.put(bytes, { digest, ...content });
      void this.#store.settled(digest).then(manifest.done);
      return kept;
    } catch (error) {
      manifest.done();
      throw error;
    }
  }

  /** The tag as it was, if the upstream cannot be asked now and the image can be pulled without it. */
  async #stale(repo: Repo, row: TagRow, question: Question, error: MirrorError): Promise<Answer | undefined> {
    const now = this.#context.clock.now();
    const isGone = error.row.definite === true;
    if (!this.#mayKeep(error.row)) return undefined;
    if (!isGone && !isServableStale(row.saidAt, now, this.#options.tags)) return undefined;
    // Blobs can still be had while it is the pulls alone that are spent.
    const what = error.fault === 'quota-spent' ? 'manifests' : 'all';
    const parts = {
      has: (part: Digest) => this.#has(part, repo) && this.#context.access.grantedOnce(repo, part),
      children: (manifest: Digest) => this.#store.children(manifest),
      // Clients of some artifacts (cosign, oras) never ask for the config.
      isUnused: ({ kind, digest }: Child) => kind === 'config' && !this.#store.catalog.wasHeld(digest),
    };
    let digest: Digest | undefined;
    for (const each of [row.digest, row.previous])
      if (each !== null && !digest && (await isWhole(each, parts, what))) digest = each;
    const held = digest && this.#lease(digest, question);
    if (!held || !(await isReadable(held, question.deadline))) return undefined;
    const reason = isGone ? 'tag-gone' : error.fault;
    return { ...answer(held, 'stale'), reason, ageMs: now - row.saidAt };
  }

  /** Whether what is held may still be served after this fault. */
  #mayKeep({ stale, definite }: MirrorError['row']): boolean {
    return stale === true || (definite === true && this.#options.tags.whenGone === 'keep');
  }

  /** It is stored, or all of it has come and is on its way into the store. */
  #has(digest: Digest, repo: Repo): boolean {
    return (
      this.#store.describe(digest) !== undefined || this.#context.fills.of(repo, digest)?.isVerified === true
    );
  }

  #holdsManifest(digest: Digest): boolean {
    const held = this.#store.describe(digest);
    return held !== undefined && held.mediaType !== blobMediaType;
  }

  /** For a GET a lease; what is known of it where no bytes are wanted. */
  #lease(digest: Digest, question: Question): Content | Descriptor | undefined {
    return wantsNoBytes(question, digest) ? this.#store.describe(digest) : this.#store.open(digest);
  }

  /**
   * Where the repo gets a blob from, in this tick: what is stored, if it may have that; else from its own registry's fill,
   * that runs or is to be made. Or what has to be waited for first, which resolves to what is `proven` then.
   */
  #way(repo: Repo, digest: Digest, proven: Proven, deadline: Deadline): 'store' | 'fill' | Promise<Proven> {
    const { access, fills } = this.#context;
    const isStored = this.#store.describe(digest) !== undefined;
    const isGranted = proven === 'stored' || access.grants(repo, digest);
    if (isStored && isGranted) return 'store';
    const fill = fills.of(repo, digest);
    if (fill?.isOver) return fill.ended.then(() => proven);
    // Its own upstream gives it; one under a pattern is not granted it before it is verified.
    const isOwn = fill?.repo.key === repo.key;
    if (fill && isOwn && (!fill.isOpen || isGranted || isFromPattern(repo))) return 'fill';
    // Another repo's question: a no would not be ours, and a yes may make the content public.
    if (fill && !fill.isOpen) return fill.settled.then(() => proven);
    if (isStored) return this.#prove(repo, digest, 'blob', deadline);
    const isArriving = fill !== undefined || this.#store.hasPartial(repo.registry, digest);
    return isArriving && !isGranted && proven === undefined
      ? this.#prove(repo, digest, 'arriving', deadline)
      : 'fill';
  }

  /** Asks the upstream whether the repo has the digest; an old yes is enough while it cannot be asked. */
  async #prove(
    repo: Repo,
    digest: Digest,
    what: 'blob' | 'manifest' | 'arriving',
    deadline: Deadline,
  ): Promise<Proven> {
    const { access, fills } = this.#context;
    try {
      const isProven = await (what === 'arriving'
        ? this.#proofs.arriving(repo, digest, fills.of(repo, digest)?.size, deadline)
        : this.#proofs.stored(repo, digest, what, deadline));
      if (!isProven) return undefined;
      return what === 'arriving' ? 'arriving' : 'stored';
    } catch (error) {
      const { row } = toMirrorError(error);
      if (this.#mayKeep(row) && access.grantedOnce(repo, digest)) return 'stored';
      if (row.definite) access.revoke(repo, digest);
      throw error;
    }
  }

  async #unlessKnownAbsent<T>(key: string, work: () => Promise<T>): Promise<T> {
    this.#negatives.check(key);
    try {
      return await work();
    } catch (error) {
      this.#negatives.note(key, toMirrorError(error));
      throw error;
    }
  }

  #upstreamOf(repo: Repo): RegistryClient {
    return this.#context.upstreams.of(repo).client;
  }

  #question(asked: Asked): Question {
    const { method, client, knows } = asked;
    return { method, client, knows, deadline: this.#deadline() };
  }

  #deadline(): Deadline {
    return new Deadline(this.#options.firstByteTimeoutMs);
  }
}

function wantsNoBytes({ method, knows }: Question, digest: Digest): boolean {
  return method === 'HEAD' || knows?.(digest) === true;
}

function late(what: string): MirrorError {
  return new MirrorError('upstream-timeout', `${what}: not there in time (fetch.firstByteTimeout)`);
}

function inTime<T>(work: Promise<T>, deadline: Deadline, what: string): Promise<T> {
  return deadline.before(work, () => late(what));
}

/** Content that can be sent; what comes too late is given back. */
async function readyInTime(coming: Promise<Content>, deadline: Deadline, what: string): Promise<Content> {
  const ready = coming.then(prepared);
  try {
    return await inTime(ready, deadline, what);
  } catch (error) {
    coming.then(
      (content) => content.release(),
      () => undefined,
    );
    throw error;
  }
}

function answer(held: Content | Descriptor, result: Result): Answer {
  const { digest, mediaType, size } = held;
  return { digest, mediaType, size, result, ...('copyTo' in held && { content: held }) };
}

async function prepared(content: Content): Promise<Content> {
  try {
    await content.prepare();
    return content;
  } catch (error) {
    content.release();
    throw error;
  }
}

/** What is damaged has been dropped from the store, and is to be looked for again. */
async function isReadable(held: Content | Descriptor, deadline: Deadline): Promise<boolean> {
  if (!('copyTo' in held)) return true;
  const ready = prepared(held);
  try {
    // Memory keeps nobody waiting; a disk that does not answer might, for ever.
    await (held instanceof MemoryContent
      ? ready
      : inTime(ready, deadline.atLeast(leastReadMs), `${held.digest} from the store's disk`));
    return true;
  } catch (error) {
    if (isFault(error, 'damaged')) return false;
    ready.then(
      (content) => content.release(),
      () => undefined,
    );
    throw error;
  }
}
