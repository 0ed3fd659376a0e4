import { smallSize, type Descriptor } from '../oci/content.ts';
import { digestOf, hashesTo, isDigest, type Digest } from '../oci/digest.ts';
import { checkList, nextPage } from '../oci/list.ts';
import { bareMediaType, refuseSchema1 } from '../oci/manifest.ts';
import { parseUnsatisfied, type ByteRange } from '../oci/range.ts';
import type { Repo } from '../oci/repo.ts';
import type { Budget } from '../util/budget.ts';
import type { Clock } from '../util/clock.ts';
import { MirrorError, toMirrorError } from '../util/errors.ts';
import { Flight } from '../util/flight.ts';
import type { Ledger } from '../util/ledger.ts';
import type { Metrics } from '../util/metrics.ts';
import { quotaSpent, type Admission, type Turn, type Turns } from './admission.ts';
import {
  isNotEnough,
  isWebPage,
  readAtMost,
  readBlob,
  sizeOf,
  tooLarge,
  type Given,
  type Landed,
  type UpstreamBlob,
} from './answers.ts';
import type { Body } from './body.ts';
import { NetworkPolicy, type NetworkPolicyOptions } from './network-policy.ts';
import { askBlob, askList, askManifest, type Ask, type ListOf } from './questions.ts';
import { tryTwice } from './try-twice.ts';
import { noAuthorization, Tokens, type Authorization } from './tokens.ts';
import {
  isPull,
  isPullLimit,
  one,
  statusFault,
  Transport,
  urlBelow,
  type Response,
  type TransportOptions,
} from './transport.ts';

export interface UpstreamOptions extends NetworkPolicyOptions, TransportOptions {
  /** `docker.io` */
  registry: string;
  /** The name or pattern that it is configured by: what metrics call it. */
  name: string;
  maxManifestBytes: number;
  /** It knows us without a login, by our address, say: what it gives is not for everybody. */
  private: boolean;
  /** Over everything before the first byte of an answer. */
  firstByteTimeoutMs: number;
}

export interface UpstreamContext {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  readonly admission: Admission;
  /** By which other mirrors know this one. */
  readonly pseudonym: string;
  /** Memory for manifests and lists that are being read, and for manifests until they are stored. */
  readonly documents: Budget;
}

/** How old an answer about a tag was when it came: another mirror may have given it. */
export interface Aged {
  readonly ageMs: number;
  /** It was served as it was, since nobody could be asked. */
  readonly isStale: boolean;
}

export interface UpstreamManifest extends Descriptor, Given, Aged {
  readonly bytes: Buffer;
  /** To be called when the bytes are not needed any more: others wait for their memory. */
  readonly done: () => void;
}

export interface UpstreamList {
  /** The exact bytes, of the form that such a list has. */
  readonly bytes: Buffer;
  /** The query of the page after it. */
  readonly next: string | null;
  /** What it says that it has filtered by. */
  readonly filters: string | null;
}

/** A source of one blob's bytes. */
export interface BlobSource {
  /**
   * The bytes, or those of `range` (an end of Infinity leaves it open), as they come. The answer may be shorter than what
   * was asked, or the whole, or, when the blob ends before the range, have no bytes. Throws `blob-unknown`. It does not
   * try again. `insists`: a download that has begun goes on asking, at its own pace.
   */
  fetch(range: ByteRange | undefined, signal: AbortSignal, insists?: boolean): Promise<UpstreamBlob>;
}

const unknown = {
  manifest: 'manifest-unknown',
  blob: 'blob-unknown',
  tags: 'repo-unknown',
  referrers: 'manifest-unknown',
  // Neither is asked for by a client.
  token: 'repo-unknown',
  ping: 'repo-unknown',
} as const;
const maxRedirects = 5;
/** What Layercache says in `X-Cache`. */
const cacheResults = /^(?:hit|joined|miss|revalidated|stale)$/;
const lookAgainMs = 10_000;
const redirects = new Set([301, 302, 303, 307, 308]);
// What servers answer that do not let HEAD through; the same question as a GET then decides.
const headRefusals = new Set([400, 403, 405, 501]);

/**
 * One upstream registry: authenticates, follows redirects, tries once more what is worth it, and turns every answer
 * into a value or a fault. `signal` is the deadline over everything before the first byte.
 */
export class RegistryClient {
  readonly registry: string;
  readonly admission: Admission;
  readonly #base: URL;
  readonly #maxManifestBytes: number;
  readonly #isPrivate: boolean;
  readonly #documents: Budget;
  readonly #clock: Clock;
  readonly #policy: NetworkPolicy;
  readonly #transport: Transport;
  readonly #tokens: Tokens;
  #lookedAt = -Infinity;
  readonly #firstLook = new Flight<'first', undefined>();

  constructor(options: UpstreamOptions, context: UpstreamContext) {
    const { clock, metrics, ledger, admission, pseudonym, documents } = context;
    this.#documents = documents;
    this.registry = options.registry;
    this.admission = admission;
    this.#base = options.url;
    this.#maxManifestBytes = options.maxManifestBytes;
    this.#isPrivate = options.private;
    this.#clock = clock;
    this.#policy = new NetworkPolicy(options);
    const policy = this.#policy;
    this.#transport = new Transport(options.name, options, {
      admission,
      policy,
      metrics,
      ledger,
      clock,
      pseudonym,
    });
    this.#tokens = new Tokens(options.registry, options.url, {
      transport: this.#transport,
      policy,
      clock,
      remembers: options.remembers,
      sharedTimeoutMs: Math.min(options.headersTimeoutMs, options.firstByteTimeoutMs),
    });
  }

  /** How many hosts are not asked now: the registry itself, and others that it leads to. */
  get shut(): { own: number; others: number } {
    return this.admission.shut(this.#base.origin);
  }

  /**
   * Why no cold pull can work now; undefined: as far as is known it can. Where it does not answer, it is asked behind this
   * whether it does again, at most every 10 s: nobody else may ask.
   */
  get obstacle(): string | undefined {
    const { origin } = this.#base;
    const now = this.#clock.monotonic();
    if (this.admission.isUnanswered(origin) && now - this.#lookedAt >= lookAgainMs) {
      this.#lookedAt = now;
      this.#tokens.look(AbortSignal.timeout(lookAgainMs)).catch(() => undefined);
    }
    return this.admission.obstacle(origin);
  }

  /** What a reference points to now. Undefined when the upstream will not say it to a HEAD. Throws `manifest-unknown`. */
  async head(
    repo: Repo,
    reference: string,
    signal: AbortSignal,
  ): Promise<(Descriptor & Given & Aged) | undefined> {
    const response = await this.#fetch(askManifest('HEAD', repo, reference, signal));
    response.body.discard();
    if (response.status !== 200) return undefined;
    const digest = one(response.headers, 'docker-content-digest') ?? '';
    const size = Number(one(response.headers, 'content-length') ?? 0);
    const mediaType = bareMediaType(one(response.headers, 'content-type'));
    if (!isDigest(digest) || !(size > 0) || mediaType === undefined || isWebPage(response)) return undefined;
    const what = `HEAD ${repo.key} manifest ${reference}`;
    refuseSchema1(mediaType, what);
    // Nobody is to be told of what cannot be had.
    if (size > this.#maxManifestBytes) throw tooLarge(what, this.#maxManifestBytes);
    return { digest, size, mediaType, isPublic: response.isPublic, ...ageOf(response) };
  }

  /**
   * The exact bytes, verified if the reference is a digest: a pull. Throws `manifest-unknown`, `digest-mismatch`,
   * `quota-spent`.
   */
  async manifest(repo: Repo, reference: string, signal: AbortSignal): Promise<UpstreamManifest> {
    const ask = askManifest('GET', repo, reference, signal);
    await this.#look(repo, reference, signal);
    return tryTwice(async () => {
      const response = await this.#once(ask);
      const done = await this.#roomFor(ask, response);
      try {
        return { ...(await this.#readManifest(ask, reference, response)), done };
      } catch (error) {
        done();
        throw error;
      }
    });
  }

  async #readManifest(
    ask: Ask,
    reference: string,
    response: Landed,
  ): Promise<Omit<UpstreamManifest, 'done'>> {
    const bytes = await this.#bytes(ask, response.body, this.#maxManifestBytes);
    const mediaType = bareMediaType(one(response.headers, 'content-type'));
    if (mediaType === undefined)
      throw new MirrorError('upstream-invalid', `${ask.what}: no usable Content-Type`);
    const said = one(response.headers, 'docker-content-digest') ?? '';
    const expected = isDigest(reference) ? reference : isDigest(said) ? said : digestOf(bytes);
    if (!hashesTo(bytes, expected)) {
      throw new MirrorError('digest-mismatch', `${ask.what}: the bytes do not hash to ${expected}`);
    }
    const { isPublic } = response;
    return { digest: expected, size: bytes.length, mediaType, bytes, isPublic, ...ageOf(response) };
  }

  /** Memory for what is about to be read. Throws `overloaded` when there is none in time. */
  async #roomFor({ what, signal }: Ask, response: Landed): Promise<() => void> {
    const size = Math.min(sizeOf(response) ?? this.#maxManifestBytes, this.#maxManifestBytes);
    return this.#documents.take(size, signal).catch((cause: unknown) => {
      response.body.discard();
      const why = `${what}: too many large manifests and lists are on their way`;
      throw new MirrorError('overloaded', why, { cause, retryAfterMs: 1000 });
    });
  }

  /**
   * A page of a list. Throws `repo-unknown` for a repo without tags, `manifest-unknown` where there is no list of
   * referrers: clients then look for a tag instead.
   */
  async list(repo: Repo, of: ListOf, query: URLSearchParams, signal: AbortSignal): Promise<UpstreamList> {
    const ask = askList(repo, of, query, signal);
    return tryTwice(async () => {
      const response = await this.#once(ask);
      if (response.status !== 200 || isWebPage(response)) {
        response.body.discard();
        throw new MirrorError('upstream-invalid', `${ask.what}: the upstream sent no list of ${of.kind}`);
      }
      const done = await this.#roomFor(ask, response);
      const bytes = await this.#bytes(ask, response.body, this.#maxManifestBytes).finally(done);
      checkList(of.kind, bytes, ask.what);
      const filters = one(response.headers, 'oci-filters-applied') ?? '';
      return {
        bytes,
        next: nextPage(response.headers['link'], response.url),
        filters: /^[\w, -]{1,200}$/.test(filters) ? filters : null,
      };
    });
  }

  /** The size of a blob, without its bytes: proof that the repo has it. Throws `blob-unknown`. */
  async headBlob(
    repo: Repo,
    digest: Digest,
    signal: AbortSignal,
  ): Promise<Given & { size: number | undefined }> {
    const head = await this.#fetch(askBlob('HEAD', repo, digest, signal));
    head.body.discard();
    const { isPublic } = head;
    if (head.status === 200 && !isWebPage(head) && sizeOf(head) !== undefined)
      return { size: sizeOf(head), isPublic };
    // One byte tells the size too.
    const ask = askBlob('GET', repo, digest, signal, { start: 0, end: 1 });
    const probe = await this.#fetch(ask);
    probe.body.discard();
    if (isWebPage(probe))
      throw new MirrorError('upstream-invalid', `${ask.what}: the upstream sent a web page`);
    return { size: sizeOf(probe), isPublic: probe.isPublic };
  }

  /** One blob as a source of its bytes. A signed link that it was redirected to is used until it is refused. */
  blobSource(repo: Repo, digest: Digest): BlobSource {
    let link: (Given & { readonly url: URL }) | undefined;
    return {
      fetch: async (range, signal, insists = false) => {
        const ask = { ...askBlob('GET', repo, digest, signal, range), insists };
        const known = link;
        const direct = known && (await this.#tryLink(ask, known).catch((error: unknown) => error as Error));
        const isGood = direct !== undefined && !(direct instanceof Error);
        // A question that was given up proves nothing.
        if (!isGood && link === known && !signal.aborted) link = undefined;
        if (direct instanceof Error) throw direct;
        const response = direct ?? (await this.#once(ask));
        const blob = readBlob(ask, response, range);
        const { url, isPublic } = response;
        link = url.origin === this.#base.origin ? undefined : { url, isPublic };
        return blob;
      },
    };
  }

  /** All bytes of a small blob's body. Throws when they are not `size`. */
  async bytes(what: string, body: Body, size: number, signal: AbortSignal): Promise<Buffer> {
    const bytes = await this.#bytes({ what, signal }, body, smallSize);
    if (bytes.length !== size)
      throw new MirrorError('upstream-invalid', `${what}: ${bytes.length} bytes, not ${size}`);
    return bytes;
  }

  close(): Promise<void> {
    return this.#transport.close();
  }

  #fetch(ask: Ask): Promise<Landed> {
    return tryTwice(() => this.#once(ask));
  }

  /** Asks where the upstream has sent us before. Undefined: that link is not good any more. */
  async #tryLink(ask: Ask, { url, isPublic }: Given & { url: URL }): Promise<Landed | undefined> {
    const response = await this.#transport.send({ ...ask, url, redirected: true });
    const { status } = response;
    const fault = this.#faultOf(ask, response);
    if (status < 300 && !fault) return { ...response, url, isPublic };
    response.body.discard();
    if (fault && (status === 429 || status >= 500)) throw fault;
    return undefined;
  }

  /** A HEAD shows whether pulls are back, where the upstream counts them and none is left. */
  async #look(repo: Repo, reference: string, signal: AbortSignal): Promise<void> {
    if (!this.admission.isTold(repo)) {
      // The first of all: it is not known yet how many there are, so not many may go at once.
      const ask = askManifest('HEAD', repo, reference, signal);
      const first = async (): Promise<undefined> => {
        (await this.#once(ask)).body.discard();
      };
      await this.#firstLook.run('first', first).outcome.catch(() => undefined);
    }
    const looks = this.admission.dueForALook(repo).map(async (account) => {
      const ask = askManifest('HEAD', repo, reference, signal);
      const response = await this.#asOneOf(ask, this.admission.turns(false, repo, ask.what, [account]));
      response.body.discard();
    });
    // What they have shown is in the quotas; that they failed says nothing.
    await Promise.allSettled(looks);
  }

  /** Status 200, 206, or what a HEAD or a range may also be answered with. */
  #once(ask: Ask): Promise<Landed> {
    return this.#asOneOf(ask, this.admission.turns(isPull(ask), ask.repo, ask.what));
  }

  /** As one account after the other, for as long as the next may do better. */
  async #asOneOf(ask: Ask, turns: Turns): Promise<Landed> {
    for (;;) {
      const turn = turns.next();
      let response: Landed;
      try {
        response = await this.#as(turn, ask);
      } catch (error) {
        const fault = toMirrorError(error);
        turn.unanswered(fault);
        if (turn.lost(fault)) continue;
        throw error;
      }
      // Others may count too, of something else.
      const isCounted = ask.kind === 'manifest' && response.url.origin === this.#base.origin;
      const isSpent = isCounted && isPullLimit(ask, response);
      turn.answered(response.status, isCounted ? response.headers : undefined, isSpent);
      const fault = isSpent ? quotaSpent(ask.what, [turn.account]) : this.#faultOf(ask, response);
      if (!fault) {
        turn.won(response.isPublic);
        return this.#isPrivate || this.#isFromCache(response) ? { ...response, isPublic: false } : response;
      }
      response.body.discard();
      if (!turn.lost(fault)) throw fault;
    }
  }

  /** Another Layercache answered. Its account may see what is private: that counts as private here too. */
  #isFromCache({ url, headers }: Landed): boolean {
    return url.origin === this.#base.origin && cacheResults.test(one(headers, 'x-cache') ?? '');
  }

  async #as(turn: Turn, ask: Ask): Promise<Landed> {
    const { account } = turn;
    const { repo, signal } = ask;
    let authorization = await this.#tokens.authorize(account, repo, signal);
    turn.sent();
    let response = await this.#follow(ask, authorization);
    const isKept = !authorization.fresh && authorization.header !== undefined;
    if (response.status === 401 && isKept && !isNotEnough(response)) {
      // Some registries challenge an expired token towards another realm: ask for the challenge without it.
      response.body.discard();
      this.#tokens.drop(account, repo);
      authorization = noAuthorization;
      response = await this.#follow(ask, authorization);
    }
    if (response.status === 401) {
      response.body.discard();
      const next = await this.#tokens.challenged(response, account, repo, signal);
      if (next && next.challenge !== authorization.challenge) response = await this.#follow(ask, next);
      else if (next?.challenge === 'basic') await this.#tokens.checkBasic(account, signal);
    }
    return response;
  }

  async #follow(ask: Ask, { header, isPublic }: Authorization): Promise<Landed> {
    let url = urlBelow(this.#base, ask.path);
    for (let hops = 0; ; hops++) {
      const own = url.origin === this.#base.origin && header !== undefined;
      const headers = own ? { ...ask.headers, authorization: header } : ask.headers;
      const response = await this.#transport.send({ ...ask, url, headers, redirected: hops > 0 });
      if (
        url.origin !== this.#base.origin &&
        (response.status === 400 || response.status === 401 || response.status === 403)
      ) {
        response.body.discard();
        // Signed links are often made for GET alone.
        if (ask.method === 'HEAD') return { ...response, url, isPublic, status: 403 };
        throw new MirrorError('redirect-refused', `${ask.what}: ${url.host} answered ${response.status}`);
      }
      if (!redirects.has(response.status)) return { ...response, url, isPublic };
      response.body.discard();
      if (hops === maxRedirects)
        throw new MirrorError('upstream-invalid', `${ask.what}: more than ${maxRedirects} redirects`);
      const next = URL.parse(one(response.headers, 'location') ?? '', url);
      if (!next || next.href === url.href) {
        throw new MirrorError('upstream-invalid', `${ask.what}: ${url.host} redirects to nowhere`);
      }
      this.#policy.checkRedirect(url, next);
      url = next;
    }
  }

  #faultOf({ what, kind, method, path }: Ask, response: Response): MirrorError | undefined {
    const { status, headers } = response;
    if (status === 200 || status === 206) {
      const coding = one(headers, 'content-encoding');
      if (coding === undefined || coding === 'identity') return undefined;
      return new MirrorError('upstream-invalid', `${what}: came coded as ${JSON.stringify(coding)}`);
    }
    if (status === 416 && parseUnsatisfied(one(headers, 'content-range')) !== undefined) return undefined;
    if (status === 404) return new MirrorError(unknown[kind], `${what}: not found`);
    // Where it knows no such request it has no such list.
    if (kind === 'referrers' && (status === 405 || status === 501))
      return new MirrorError('manifest-unknown', `${what}: the upstream answered ${status}`);
    if (kind === 'referrers' && (status === 400 || status === 406))
      return new MirrorError('repo-unknown', `${what}: the upstream answered ${status}`);
    if (kind === 'tags' && status === 400 && path.includes('?') && !isWebPage(response))
      return new MirrorError('page-invalid', `${what}: the upstream does not know this page (400)`);
    if (method === 'HEAD' && headRefusals.has(status)) return undefined;
    if (status === 401 || status === 403) {
      return new MirrorError(
        'repo-unknown',
        `${what}: not found, or not permitted (the upstream answered ${status})`,
      );
    }
    return statusFault(response, `${what}: the upstream answered ${status}`, this.#clock.now());
  }

  async #bytes({ what, signal }: Pick<Ask, 'what' | 'signal'>, body: Body, limit: number): Promise<Buffer> {
    const bytes = await readAtMost({ what, signal }, body, limit);
    if (bytes) return bytes;
    if (limit === this.#maxManifestBytes) throw tooLarge(what, limit);
    throw new MirrorError('upstream-invalid', `${what}: more than ${limit} bytes`);
  }
}

const longestAgeMs = 365 * 24 * 60 * 60_000;

function ageOf({ headers }: Response): Aged {
  const seconds = /^\d{1,12}$/.exec(one(headers, 'age') ?? '')?.[0] ?? '0';
  return {
    ageMs: Math.min(Number(seconds) * 1000, longestAgeMs),
    isStale: one(headers, 'x-cache') === 'stale',
  };
}
