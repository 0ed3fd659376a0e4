import { smallSize, type Descriptor } from '../oci/content.ts';
import { digestOf, hashesTo, isDigest, type Digest } from '../oci/digest.ts';
import { checkList, nextPage } from '../oci/list.ts';
import { bareMediaType, refuseSchema1 } from '../oci/manifest.ts';
import { type ByteRange } from '../oci/range.ts';
import type { Repo } from '../oci/repo.ts';
import type { Budget } from '../util/budget.ts';
import { MirrorError } from '../util/errors.ts';
import type { AccountPool } from './accounts/account-pool.ts';
import type { Body } from './http/body.ts';
import { headerOf } from './http/headers.ts';
import { readAtMost, type Response } from './http/transport.ts';
import { blobRequest, listRequest, manifestRequest, type ListOf, type RepoRequest } from './repo-requests.ts';
import { Requests, type UpstreamContext, type UpstreamOptions } from './requests.ts';
import {
  isWebPage,
  readBlob,
  sizeOf,
  tooLarge,
  type FinalResponse,
  type Provenance,
  type UpstreamBlob,
} from './responses.ts';
import { tryTwice } from './try-twice.ts';

/** The age of an answer about a tag: the upstream may itself be a cache. */
export interface AnswerAge {
  readonly ageMs: number;
  /** Served stale, since the upstream's own upstream could not be asked. */
  readonly isStale: boolean;
}

export interface UpstreamManifest extends Descriptor, Provenance, AnswerAge {
  readonly bytes: Buffer;
  /** Releases the memory reserved for the bytes. */
  readonly done: () => void;
}

export interface UpstreamList {
  /** The exact bytes, checked to be a list of this kind. */
  readonly bytes: Buffer;
  /** Query string of the next page. */
  readonly next: string | null;
  /** The upstream's `OCI-Filters-Applied`. */
  readonly filters: string | null;
}

/** Fetches one blob's bytes. */
export interface BlobSource {
  /**
   * Fetches the blob, or `range` (`end` may be Infinity), without retries. The response may be shorter than the range,
   * be the whole blob, or be empty if the blob ends before the range. Throws `blob-unknown` and upstream faults.
   * `bypassesBreaker`: for resumed downloads, which pace their own retries.
   */
  fetch(range: ByteRange | undefined, signal: AbortSignal, bypassesBreaker?: boolean): Promise<UpstreamBlob>;
}

/**
 * Client of one upstream registry: turns responses into values or faults. `signal` is the deadline of everything
 * before the first byte.
 */
export class RegistryClient {
  readonly registry: string;
  readonly accounts: AccountPool;
  readonly #requests: Requests;
  readonly #documents: Budget;
  readonly #maxManifestBytes: number;
  /** The configured name or pattern: registries under one pattern share a memory limit. */
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

  /** Number of open circuits: the registry itself (0 or 1), and other hosts it leads to. */
  get openCircuits(): { own: number; others: number } {
    return this.#requests.openCircuits;
  }

  /** Why no uncached pull can work now; undefined if one can, as far as known. */
  get obstacle(): string | undefined {
    return this.#requests.obstacle;
  }

  /**
   * What a reference points to now. Undefined if HEAD gives no usable answer. Throws `manifest-unknown`,
   * `upstream-invalid`.
   */
  async head(
    repo: Repo,
    reference: string,
    signal: AbortSignal,
  ): Promise<(Descriptor & Provenance & AnswerAge) | undefined> {
    const response = await this.#requests.sendWithRetry(manifestRequest('HEAD', repo, reference, signal));
    response.body.discard();
    if (response.status !== 200) return undefined;
    const digest = headerOf(response.headers, 'docker-content-digest') ?? '';
    const size = Number(headerOf(response.headers, 'content-length') ?? 0);
    const mediaType = bareMediaType(headerOf(response.headers, 'content-type'));
    if (!isDigest(digest) || !(size > 0) || mediaType === undefined || isWebPage(response)) return undefined;
    const what = `HEAD ${repo.key} manifest ${reference}`;
    refuseSchema1(mediaType, what);
    // A client must not be told of a manifest that is too large to pull.
    if (size > this.#maxManifestBytes) throw tooLarge(what, this.#maxManifestBytes);
    return { digest, size, mediaType, isPublic: response.isPublic, ...ageOf(response) };
  }

  /**
   * Pulls a manifest: its exact bytes, verified if the reference is a digest. Throws `manifest-unknown`,
   * `digest-mismatch`, `quota-spent`, `overloaded`.
   */
  async manifest(repo: Repo, reference: string, signal: AbortSignal): Promise<UpstreamManifest> {
    const request = manifestRequest('GET', repo, reference, signal);
    await this.#requests.refreshQuota(repo, reference, signal);
    return tryTwice(async () => {
      const response = await this.#requests.send(request);
      const done = await this.#reserveMemory(request, response);
      try {
        return { ...(await this.#readManifest(request, reference, response)), done };
      } catch (error) {
        done();
        throw error;
      }
    });
  }

  async #readManifest(
    request: RepoRequest,
    reference: string,
    response: FinalResponse,
  ): Promise<Omit<UpstreamManifest, 'done'>> {
    const bytes = await this.#bytes(request, response.body, this.#maxManifestBytes);
    const mediaType = bareMediaType(headerOf(response.headers, 'content-type'));
    if (mediaType === undefined)
      throw new MirrorError('upstream-invalid', `${request.what}: no usable Content-Type`);
    const stated = headerOf(response.headers, 'docker-content-digest') ?? '';
    const expected = isDigest(reference) ? reference : isDigest(stated) ? stated : digestOf(bytes);
    if (!hashesTo(bytes, expected)) {
      throw new MirrorError(
        'digest-mismatch',
        `${request.what}: the bytes do not match the digest ${expected}`,
      );
    }
    const { isPublic } = response;
    return { digest: expected, size: bytes.length, mediaType, bytes, isPublic, ...ageOf(response) };
  }

  /** Reserves memory for a body to read. Throws `overloaded` if none is free before the deadline. */
  async #reserveMemory({ what, signal }: RepoRequest, response: FinalResponse): Promise<() => void> {
    const size = Math.min(sizeOf(response) ?? this.#maxManifestBytes, this.#maxManifestBytes);
    return this.#documents.take(this.#name, size, signal).catch((cause: unknown) => {
      response.body.discard();
      const why = `${what}: too many large manifests and lists are being read`;
      throw new MirrorError('overloaded', why, { cause, retryAfterMs: 1000 });
    });
  }

  /**
   * One page of a list. Throws `repo-unknown` for a repo without tags, `manifest-unknown` without a referrers API:
   * clients then use the referrers tag schema.
   */
  async list(repo: Repo, of: ListOf, query: URLSearchParams, signal: AbortSignal): Promise<UpstreamList> {
    const request = listRequest(repo, of, query, signal);
    return tryTwice(async () => {
      const response = await this.#requests.send(request);
      if (response.status !== 200 || isWebPage(response)) {
        response.body.discard();
        throw new MirrorError('upstream-invalid', `${request.what}: the upstream sent no list of ${of.kind}`);
      }
      const done = await this.#reserveMemory(request, response);
      const bytes = await this.#bytes(request, response.body, this.#maxManifestBytes).finally(done);
      checkList(of.kind, bytes, request.what);
      const filters = headerOf(response.headers, 'oci-filters-applied') ?? '';
      return {
        bytes,
        next: nextPage(response.headers['link'], response.url),
        filters: /^[\w, -]{1,200}$/.test(filters) ? filters : null,
      };
    });
  }

  /** The size of a blob in bytes; proves that the repo has it. Throws `blob-unknown`. */
  async headBlob(
    repo: Repo,
    digest: Digest,
    signal: AbortSignal,
  ): Promise<Provenance & { size: number | undefined }> {
    const head = await this.#requests.sendWithRetry(blobRequest('HEAD', repo, digest, signal));
    head.body.discard();
    const { isPublic } = head;
    if (head.status === 200 && !isWebPage(head) && sizeOf(head) !== undefined)
      return { size: sizeOf(head), isPublic };
    // Content-Range of a one-byte GET has the size too.
    const request = blobRequest('GET', repo, digest, signal, { start: 0, end: 1 });
    const probe = await this.#requests.sendWithRetry(request);
    probe.body.discard();
    if (isWebPage(probe))
      throw new MirrorError('upstream-invalid', `${request.what}: the upstream sent a web page`);
    return { size: sizeOf(probe), isPublic: probe.isPublic };
  }

  /** A source of one blob's bytes. Reuses the redirect target (a signed link) until it is refused. */
  blobSource(repo: Repo, digest: Digest): BlobSource {
    let link: (Provenance & { readonly url: URL }) | undefined;
    return {
      fetch: async (range, signal, bypassesBreaker = false) => {
        const request = { ...blobRequest('GET', repo, digest, signal, range), bypassesBreaker };
        const oldLink = link;
        const direct =
          oldLink &&
          (await this.#requests.sendToLink(request, oldLink).catch((error: unknown) => error as Error));
        const isUsable = direct !== undefined && !(direct instanceof Error);
        // An aborted request says nothing about the link.
        if (!isUsable && link === oldLink && !signal.aborted) link = undefined;
        if (direct instanceof Error) throw direct;
        const response = direct ?? (await this.#requests.send(request));
        const blob = readBlob(request, response, range);
        const { url, isPublic } = response;
        link = url.origin === this.#base.origin ? undefined : { url, isPublic };
        return blob;
      },
    };
  }

  /** Reads the body of a small blob. Throws `upstream-invalid` if it is not `size` bytes. */
  async bytes(what: string, body: Body, size: number, signal: AbortSignal): Promise<Buffer> {
    const bytes = await this.#bytes({ what, signal }, body, smallSize);
    if (bytes.length !== size)
      throw new MirrorError('upstream-invalid', `${what}: ${bytes.length} bytes, expected ${size}`);
    return bytes;
  }

  close(): Promise<void> {
    return this.#requests.close();
  }

  async #bytes(
    { what, signal }: Pick<RepoRequest, 'what' | 'signal'>,
    body: Body,
    limit: number,
  ): Promise<Buffer> {
    const bytes = await readAtMost({ what, signal }, body, limit);
    if (bytes) return bytes;
    if (limit === this.#maxManifestBytes) throw tooLarge(what, limit);
    throw new MirrorError('upstream-invalid', `${what}: larger than ${limit} bytes`);
  }
}

const longestAgeMs = 365 * 24 * 60 * 60_000;

function ageOf({ headers }: Response): AnswerAge {
  const seconds = /^\d{1,12}$/.exec(headerOf(headers, 'age') ?? '')?.[0] ?? '0';
  return {
    ageMs: Math.min(Number(seconds) * 1000, longestAgeMs),
    isStale: headerOf(headers, 'x-cache') === 'stale',
  };
}
