import { blobMediaType, type Content, type Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { defaultManifestType, parseManifest, unnamedType } from '../oci/manifest.ts';
import type { Repo } from '../oci/repo.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { UpstreamManifest } from '../upstream/registry-client.ts';
import type { Deadline } from '../util/deadline.ts';
import { Flight } from '../util/flight.ts';
import type { Authorizer, Proven } from './access/authorize.ts';
import type { Links } from './access/links.ts';
import { answerWith, leaseFor, wantsNoBytes, type Answer, type TimedRequest } from './answer.ts';
import { beforeDeadline, deadlineExceeded, isReadable } from './in-time.ts';
import type { Negatives } from './tags/negatives.ts';
import type { Upstreams } from './upstreams.ts';

/** A larger manifest is sent from its file, not from memory. */
const largeManifestBytes = 1024 * 1024;

export interface ManifestsContext {
  readonly store: BlobStore;
  readonly links: Links;
  readonly authorizer: Authorizer;
  readonly negatives: Negatives;
  readonly upstreams: Upstreams;
}

/** Manifests by digest: from the store, else from the upstream in one pull shared by all waiting clients. */
export class Manifests {
  readonly #context: ManifestsContext;
  readonly #fetching = new Flight<string, Content>();

  constructor(context: ManifestsContext) {
    this.#context = context;
  }

  async answer(repo: Repo, digest: Digest, request: TimedRequest): Promise<Answer> {
    const hit = this.hitAtOnce(repo, digest, request);
    if (hit) return hit;
    const { deadline } = request;
    const { negatives, upstreams } = this.#context;
    return negatives.unlessKnownAbsent(`${repo.key} manifest ${digest}`, async () => {
      const held = await this.#held(repo, digest, request);
      if (held) return answerWith(held, 'hit');
      if (wantsNoBytes(request, digest)) {
        // A GET would count as a pull, and the client wants no bytes.
        const head = await upstreams.of(repo).client.head(repo, digest, deadline.signal);
        if (head) return { digest, mediaType: head.mediaType, size: head.size, result: 'miss' };
      }
      const { value, joined } = await this.fetch(repo, digest, deadline);
      return answerWith(await this.#fromFile(value, deadline), joined ? 'joined' : 'miss');
    });
  }

  /** A hit that waits for nothing: the manifest is in memory, or no bytes are wanted. Undefined: anything else. */
  hitAtOnce(repo: Repo, digest: Digest, request: TimedRequest): Answer | undefined {
    const { links, store } = this.#context;
    const known = store.describe(digest);
    if (!known || known.mediaType === blobMediaType || !links.grants(repo, digest)) return undefined;
    if (!this.#isTypeKnown(repo, known)) return undefined;
    const held = wantsNoBytes(request, digest) ? known : store.openFromMemory(digest);
    return held && answerWith(held, 'hit');
  }

  /** Stored content, once the repo's access is proven. Undefined: not stored. */
  async #held(repo: Repo, digest: Digest, request: TimedRequest): Promise<Content | Descriptor | undefined> {
    const { links, authorizer } = this.#context;
    const { deadline } = request;
    for (let proven: Proven; this.holds(digest);) {
      if (proven !== 'stored' && !links.grants(repo, digest)) {
        proven = await authorizer.prove(repo, digest, 'manifest', deadline);
        continue;
      }
      const held = leaseFor(this.#context.store, digest, request);
      if (!held || !(await isReadable(held, deadline))) continue;
      if (this.#isTypeKnown(repo, held) || proven === 'stored') return held;
      // This repo's upstream has not yet been asked for the manifest's media type.
      if ('release' in held) held.release();
      proven = await authorizer.prove(repo, digest, 'manifest', deadline);
    }
    return undefined;
  }

  /** Whether the manifest's bytes name its media type, or this repo's upstream did. */
  #isTypeKnown(repo: Repo, { mediaType, digest }: Pick<Descriptor, 'mediaType' | 'digest'>): boolean {
    return mediaType !== unnamedType || this.#context.links.typeOf(repo, digest) !== undefined;
  }

  /** Pulls from the upstream. `joined`: another request's pull was shared. */
  fetch(repo: Repo, digest: Digest, deadline: Deadline): Promise<{ value: Content; joined: boolean }> {
    const key = `${repo.key}@${digest}`;
    const fetch = async ({ signal }: Deadline): Promise<Content> =>
      this.put(repo, await this.#context.upstreams.of(repo).client.manifest(repo, digest, signal));
    return this.#fetching.within(key, deadline, fetch, () => deadlineExceeded(`GET ${key}`));
  }

  /** Stores a manifest that the upstream served for the repo. Throws `upstream-invalid` if it is not a manifest. */
  put(repo: Repo, manifest: UpstreamManifest): Content {
    const { links, store } = this.#context;
    const { digest, bytes } = manifest;
    try {
      const content = parseManifest(bytes, manifest.mediaType, `${repo.key} manifest ${digest}`);
      links.confirm(repo, digest, manifest);
      const stored = store.put(bytes, { digest, ...content });
      void store.persisted(digest).then(manifest.done);
      return stored;
    } catch (error) {
      manifest.done();
      throw error;
    }
  }

  /** Whether the digest is stored as a manifest. */
  holds(digest: Digest): boolean {
    const held = this.#context.store.describe(digest);
    return held !== undefined && held.mediaType !== blobMediaType;
  }

  /** The media type of a manifest whose bytes declare none. */
  typeOf(repo: Repo, digest: Digest): string {
    const { links, store } = this.#context;
    return links.typeOf(repo, digest) ?? defaultManifestType(store.children(digest));
  }

  /** Reads a large manifest from its file, so that slow clients do not hold memory. */
  async #fromFile(fetched: Content, deadline: Deadline): Promise<Content> {
    const { store } = this.#context;
    const { digest, size = 0 } = fetched;
    if (size <= largeManifestBytes) return fetched;
    await beforeDeadline(store.persisted(digest), deadline, `manifest ${digest}`);
    const stored = store.open(digest);
    return stored && (await isReadable(stored, deadline)) ? stored : fetched;
  }
}
