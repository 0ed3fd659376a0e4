import type { Digest } from '../../oci/digest.ts';
import type { Child } from '../../oci/manifest.ts';
import type { Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { TagRow } from '../../store/catalog/tables/tags.ts';
import type { Clock } from '../../util/clock.ts';
import type { MirrorError } from '../../util/errors.ts';
import type { Links } from '../access/links.ts';
import { answerWith, leaseFor, type Answer, type TimedRequest } from '../answer.ts';
import type { Fills } from '../fill/fills.ts';
import { isReadable } from '../in-time.ts';
import { isServableStale, mayServeAfter, type TagPolicy } from './freshness.ts';
import { isWhole } from './wholeness.ts';

export interface StaleContext {
  readonly clock: Clock;
  readonly store: BlobStore;
  readonly links: Links;
  readonly fills: Fills;
  readonly policy: () => TagPolicy;
}

/** Serves stale tags while the upstream cannot be asked, if the image can be pulled whole from the store. */
export class StaleTags {
  readonly #context: StaleContext;

  constructor(context: StaleContext) {
    this.#context = context;
  }

  /** The stale answer to serve in place of this fault; undefined: none. */
  async answer(
    repo: Repo,
    row: TagRow,
    request: TimedRequest,
    error: MirrorError,
  ): Promise<Answer | undefined> {
    const { clock, store } = this.#context;
    const policy = this.#context.policy();
    const now = clock.now();
    const isGone = error.row.definite === true;
    if (!mayServeAfter(error, policy)) return undefined;
    if (!isGone && !isServableStale(row.registryCheckedAt, now, policy)) return undefined;
    // `quota-spent` blocks manifests only: blobs can still be fetched.
    const needed = error.fault === 'quota-spent' ? 'manifests' : 'all';
    const digest = await this.#firstWhole(repo, [row.digest, row.previous], needed);
    const held = digest && leaseFor(store, digest, request);
    if (!held || !(await isReadable(held, request.deadline))) return undefined;
    const reason = isGone ? 'tag-gone' : error.fault;
    return { ...answerWith(held, 'stale'), reason, ageMs: now - row.registryCheckedAt };
  }

  async #firstWhole(
    repo: Repo,
    digests: readonly (Digest | null)[],
    needed: 'manifests' | 'all',
  ): Promise<Digest | undefined> {
    const { links, store } = this.#context;
    const parts = {
      has: (part: Digest) => this.#has(repo, part) && links.grantsStale(repo, part),
      children: (manifest: Digest) => store.children(manifest),
      // Clients of some artifacts (cosign, oras) never request the config.
      isUnused: ({ kind, digest }: Child) => kind === 'config' && !store.catalog.children.wasStored(digest),
    };
    for (const digest of digests)
      if (digest !== null && (await isWhole(digest, parts, needed))) return digest;
    return undefined;
  }

  /** Stored, or verified and about to be stored. */
  #has(repo: Repo, digest: Digest): boolean {
    const { store, fills } = this.#context;
    return store.describe(digest) !== undefined || fills.of(repo, digest)?.isVerified === true;
  }
}
