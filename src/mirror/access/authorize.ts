import type { Digest } from '../../oci/digest.ts';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Deadline } from '../../util/deadline.ts';
import { toMirrorError } from '../../util/errors.ts';
import { mayServeAfter, type TagPolicy } from '../tags/freshness.ts';
import type { Links } from './links.ts';
import type { Proofs } from './proofs.ts';

/** Proof of access that a request has: to stored content, or to content still being fetched from its own registry. */
export type Proven = 'stored' | 'arriving' | undefined;

/** A running fill of the same registry and digest. */
export interface ArrivingFill {
  /** The repo that the fill requests from its upstream. */
  readonly repo: Repo;
  /** The upstream has responded. */
  readonly isOpen: boolean;
  /** No further request may join the fill. */
  readonly isOver: boolean;
  readonly size: number | undefined;
  /** Resolves once the upstream has responded or the fill has failed. */
  readonly settled: Promise<unknown>;
  readonly ended: Promise<void>;
}

export interface AuthorizeContext {
  readonly store: BlobStore;
  readonly links: Links;
  readonly proofs: Proofs;
  readonly fills: { of(repo: Repo, digest: Digest): ArrivingFill | undefined };
  readonly policy: () => TagPolicy;
}

/**
 * Decides whether a repo may read a blob or manifest. Knowing a digest grants no access: the upstream must have served
 * or confirmed the digest for this repo.
 */
export class Authorizer {
  readonly #context: AuthorizeContext;

  constructor(context: AuthorizeContext) {
    this.#context = context;
  }

  /**
   * Source of a blob for the repo, decided synchronously: `store`, or `fill` (its own registry's fill, running or
   * new). A promise means the caller must wait; it resolves to the proof to pass to the next call.
   */
  sourceOf(
    repo: Repo,
    digest: Digest,
    proven: Proven,
    deadline: Deadline,
  ): 'store' | 'fill' | Promise<Proven> {
    const { links, fills, store } = this.#context;
    const isStored = store.describe(digest) !== undefined;
    const isGranted = proven === 'stored' || links.grants(repo, digest);
    if (isStored && isGranted) return 'store';
    const fill = fills.of(repo, digest);
    if (fill?.isOver) return fill.ended.then(() => proven);
    // The fill requests this very repo. A registry under a pattern gets no link before the bytes are verified.
    const isOwn = fill?.repo.key === repo.key;
    if (fill && isOwn && (!fill.isOpen || isGranted || isFromPattern(repo))) return 'fill';
    // Another repo's fill: its refusal would not apply to this repo, and its success may make the content public.
    if (fill && !fill.isOpen) return fill.settled.then(() => proven);
    if (isStored) return this.prove(repo, digest, 'blob', deadline);
    const isArriving = fill !== undefined || store.hasPartial(repo.registry, digest);
    return isArriving && !isGranted && proven === undefined
      ? this.prove(repo, digest, 'arriving', deadline)
      : 'fill';
  }

  /**
   * Asks the upstream whether the repo has the digest. While the upstream cannot be asked, an expired link suffices.
   */
  async prove(
    repo: Repo,
    digest: Digest,
    what: 'blob' | 'manifest' | 'arriving',
    deadline: Deadline,
  ): Promise<Proven> {
    const { links, fills, proofs, policy } = this.#context;
    try {
      const isProven = await (what === 'arriving'
        ? proofs.arriving(repo, digest, fills.of(repo, digest)?.size, deadline)
        : proofs.stored(repo, digest, what, deadline));
      if (!isProven) return undefined;
      return what === 'arriving' ? 'arriving' : 'stored';
    } catch (error) {
      const fault = toMirrorError(error);
      if (mayServeAfter(fault, policy()) && links.grantsStale(repo, digest)) return 'stored';
      if (fault.row.definite) links.revoke(repo, digest);
      throw error;
    }
  }
}
