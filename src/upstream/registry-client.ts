import { smallSize, type Descriptor } from '../oci/content.ts';
import { digestOf, hashesTo, isDigest, type Digest } from '../oci/digest.ts';
import { checkList, nextPage } from '../oci/list.ts';
import { bareMediaType, refuseSchema1 } from '../oci/manifest.ts';
import { type ByteRange } from '../oci/range.ts';
import type { Repo } from '../oci/repo.ts';
import type { Budget } from '../util/budget.ts';
import { MirrorError } from '../util/errors.ts';
import type { AccountPool } from './accounts/account-pool.ts';
import {
  isWebPage,
  readAtMost,
  readBlob,
  sizeOf,
  tooLarge,
  type FinalResponse,
  type Provenance,
  type UpstreamBlob,
} from './answers.ts';
import type { Body } from './http/body.ts';
import { one } from './http/headers.ts';
import { type Response } from './http/transport.ts';
import { askBlob, askList, askManifest, type Ask, type ListOf } from './questions.ts';
import { Requests, type UpstreamContext, type UpstreamOptions } from './requests.ts';
import { tryTwice } from './try-twice.ts';

/** How old an answer about a tag was when it came: another mirror may have given it. */
export interface Aged {
  readonly ageMs: number;
  /** It was served as it was, since nobody could be asked. */
  readonly isStale: boolean;
}

export interface UpstreamManifest extends Descriptor, Provenance, Aged {
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
   * try again. `bypassesBreaker`: a download that has begun goes on asking, at its own pace.
   */
  fetch(range: ByteRange | undefined, signal: AbortSignal, bypassesBreaker?: boolean): Promise<UpstreamBlob>;
}

/**
 * One upstream registry: turns what it answers into values or faults. `signal` is the deadline over everything before the first byte.
 */
export class RegistryClient {
  readonly registry: string;
  readonly accounts: AccountPool;
  readonly #requests: Requests;
  readonly #documents: Budget;
  readonly #maxManifestBytes: number;
  /** As it is configured: registries under one pattern share what one may take. */
  readonly #name: string;
  readonly #base: URL;

  constructor(options: UpstreamOptions, context: UpstreamContext) {
    this.registry = options.registry;
    this.accounts = context.accounts;
    this.#requests = new Requests(options, context);
    this.#documents = context.documents;
    this.#maxManifestBytes = options.maxManifestBytes;
    this.#name = options.name;
    this.#base = options.url;
  }

  /** How many hosts are not called now: the registry itself (0 or 1), and others that it leads to. */
  get shut(): { own: number; others: number } {
    return this.#requests.shut;
  }

  /** Why no cold pull can work now; undefined: as far as is known it can. */
  get obstacle(): string | undefined {
    return this.#requests.obstacle;
  }

  /** What a reference points to now. Undefined when the upstream will not say it to a HEAD. Throws `manifest-unknown`. */
  async head(
    repo: Repo,
    reference: string,
    signal: AbortSignal,
  ): Promise<(Descriptor & Provenance & Aged) | undefined> {
    const response = await this.#requests.sendTwice(askManifest('HEAD', repo, reference, signal));
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
    await this.#requests.refreshQuota(repo, reference, signal);
    return tryTwice(async () => {
      const response = await this.#requests.send(ask);
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
    response: FinalResponse,
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
  async #roomFor({ what, signal }: Ask, response: FinalResponse): Promise<() => void> {
    const size = Math.min(sizeOf(response) ?? this.#maxManifestBytes, this.#maxManifestBytes);
    return this.#documents.take(this.#name, size, signal).catch((cause: unknown) => {
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
      const response = await this.#requests.send(ask);
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
  ): Promise<Provenance & { size: number | undefined }> {
    const head = await this.#requests.sendTwice(askBlob('HEAD', repo, digest, signal));
    head.body.discard();
    const { isPublic } = head;
    if (head.status === 200 && !isWebPage(head) && sizeOf(head) !== undefined)
      return { size: sizeOf(head), isPublic };
    // One byte tells the size too.
    const ask = askBlob('GET', repo, digest, signal, { start: 0, end: 1 });
    const probe = await this.#requests.sendTwice(ask);
    probe.body.discard();
    if (isWebPage(probe))
      throw new MirrorError('upstream-invalid', `${ask.what}: the upstream sent a web page`);
    return { size: sizeOf(probe), isPublic: probe.isPublic };
  }

  /** One blob as a source of its bytes. A signed link that it was redirected to is used until it is refused. */
  blobSource(repo: Repo, digest: Digest): BlobSource {
    let link: (Provenance & { readonly url: URL }) | undefined;
    return {
      fetch: async (range, signal, bypassesBreaker = false) => {
        const ask = { ...askBlob('GET', repo, digest, signal, range), bypassesBreaker };
        const known = link;
        const direct =
          known && (await this.#requests.sendToLink(ask, known).catch((error: unknown) => error as Error));
        const isGood = direct !== undefined && !(direct instanceof Error);
        // A question that was given up proves nothing.
        if (!isGood && link === known && !signal.aborted) link = undefined;
        if (direct instanceof Error) throw direct;
        const response = direct ?? (await this.#requests.send(ask));
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
    return this.#requests.close();
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
