import { blobMediaType } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { unnamedType } from '../oci/manifest.ts';
import { isWholeWant, type Want } from '../oci/range.ts';
import type { Repo } from '../oci/repo.ts';
import type { Reference } from '../oci/route.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Clock } from '../util/clock.ts';
import { Deadline } from '../util/deadline.ts';
import { Authorizer, type Proven } from './access/authorize.ts';
import type { Links } from './access/links.ts';
import { Proofs } from './access/proofs.ts';
import {
  answerWith,
  leaseFor,
  wantsNoBytes,
  type Answer,
  type ClientRequest,
  type Result,
  type TimedRequest,
} from './answer.ts';
import type { Fills } from './fill/fills.ts';
import type { Prefetch } from './fill/prefetch.ts';
import { beforeDeadline, isReadable, readyBeforeDeadline } from './in-time.ts';
import { Manifests } from './manifests.ts';
import type { MirrorSettings, TagPolicy } from './tags/freshness.ts';
import { Negatives } from './tags/negatives.ts';
import { StaleTags } from './tags/stale.ts';
import { TagResolver } from './tags/tag-resolver.ts';
import type { Tags } from './tags/tags.ts';
import type { Upstreams } from './upstreams.ts';

export interface MirrorContext {
  readonly clock: Clock;
  readonly store: BlobStore;
  readonly fills: Fills;
  readonly links: Links;
  readonly tags: Tags;
  readonly upstreams: Upstreams;
  readonly prefetch: Prefetch;
}

/**
 * The pull-through cache. Serves stored content from the store; streams missing content from the upstream, once for
 * all clients, while writing it to disk. Revalidates a tag when its TTL is over, and serves it stale while the
 * upstream cannot be asked. A repo's content is served only if the upstream served or confirmed it for that repo.
 */
export class Mirror {
  readonly #settings: () => MirrorSettings;
  readonly #context: MirrorContext;
  readonly #negatives: Negatives;
  readonly #authorizer: Authorizer;
  readonly #manifests: Manifests;
  readonly #resolver: TagResolver;

  constructor(settings: () => MirrorSettings, context: MirrorContext) {
    const policy = (): TagPolicy => settings().tags;
    this.#settings = settings;
    this.#context = context;
    const negatives = new Negatives(policy, context.clock);
    const authorizer = new Authorizer({ ...context, policy, proofs: new Proofs(context) });
    const manifests = new Manifests({ ...context, authorizer, negatives });
    const stale = new StaleTags({ ...context, policy });
    this.#negatives = negatives;
    this.#authorizer = authorizer;
    this.#manifests = manifests;
    this.#resolver = new TagResolver(settings, { ...context, manifests, stale, negatives });
  }

  async manifest(repo: Repo, reference: Reference, request: ClientRequest): Promise<Answer> {
    const timed = this.#timed(request);
    const found = await ('digest' in reference
      ? this.#manifests.answer(repo, reference.digest, timed)
      : this.#resolver.answer(repo, reference.tag, timed));
    if (request.method === 'GET') this.#context.prefetch.manifestServed(request.client, repo, found.digest);
    if (found.mediaType !== unnamedType) return found;
    return { ...found, mediaType: this.#manifests.typeOf(repo, found.digest) };
  }

  /** `want`: the requested part. */
  async blob(repo: Repo, digest: Digest, request: ClientRequest, want: Want): Promise<Answer> {
    const { fills, store } = this.#context;
    const timed = this.#timed(request);
    const { deadline } = timed;
    const what = `${repo.key} blob ${digest}`;
    return this.#negatives.unlessKnownAbsent(what, async () => {
      for (let proven: Proven; ;) {
        const source = this.#authorizer.sourceOf(repo, digest, proven, deadline);
        if (source instanceof Promise) {
          proven = await beforeDeadline(source, deadline, what);
          continue;
        }
        // From the look-up to the lease nothing awaits, so the content is in the store, in a fill, or in neither.
        const held = source === 'store' ? leaseFor(store, digest, timed) : undefined;
        if (held) {
          this.#noteBlobRequest(repo, digest, request, want, 'hit');
          if (isWholeWant(want) && 'copyTo' in held) store.noteFullDownload(digest, request.client);
          if (await isReadable(held, deadline))
            return { ...answerWith(held, 'hit'), mediaType: blobMediaType };
        } else if (wantsNoBytes(timed, digest)) return await this.#headOfBlob(repo, digest, deadline);
        else {
          const { content, result } = fills.join(repo, digest, want);
          this.#noteBlobRequest(repo, digest, request, want, result);
          return answerWith(await readyBeforeDeadline(content, deadline, `GET ${what}`), result);
        }
      }
    });
  }

  /** HEAD of a blob that is not stored; a running fill knows the size. */
  async #headOfBlob(repo: Repo, digest: Digest, { signal }: Deadline): Promise<Answer> {
    const { fills, upstreams } = this.#context;
    const arriving = fills.of(repo, digest)?.size;
    if (arriving !== undefined) return { digest, mediaType: blobMediaType, size: arriving, result: 'joined' };
    const { size } = await upstreams.of(repo).client.headBlob(repo, digest, signal);
    return { digest, mediaType: blobMediaType, size, result: 'miss' };
  }

  #noteBlobRequest(
    repo: Repo,
    digest: Digest,
    { method, client }: ClientRequest,
    want: Want,
    result: Result,
  ): void {
    if (method === 'GET' && want === 'whole')
      this.#context.prefetch.requested(client, repo, digest, result === 'miss');
  }

  #timed({ method, client, clientHas }: ClientRequest): TimedRequest {
    return { method, client, clientHas, deadline: new Deadline(this.#settings().firstByteTimeoutMs) };
  }
}
