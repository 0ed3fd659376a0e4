import type { Digest } from '../../oci/digest.ts';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Deadline } from '../../util/deadline.ts';
import { toMirrorError } from '../../util/errors.ts';
import { mayServeAfter, type TagPolicy } from '../tags/freshness.ts';
import type { Access } from './links.ts';
import type { Proofs } from './proofs.ts';

/** What a request has been shown to be entitled to: the stored content, or what is arriving from its own registry. */
export type Proven = 'stored' | 'arriving' | undefined;

/** A fill that is running, of the same registry and digest. */
export interface ArrivingFill {
  /** The repo that its upstream is asked for. */
  readonly repo: Repo;
  /** The upstream has answered. */
  readonly isOpen: boolean;
  /** Nobody is to join any more. */
  readonly isOver: boolean;
  readonly size: number | undefined;
  /** Resolves when the upstream has answered, or not. */
  readonly settled: Promise<unknown>;
  readonly ended: Promise<void>;
}

export interface AuthorizeContext {
  readonly store: BlobStore;
  readonly access: Access;
  readonly proofs: Proofs;
  readonly fills: { of(repo: Repo, digest: Digest): ArrivingFill | undefined };
  readonly policy: () => TagPolicy;
}

/**
 * What a repo may be shown, and what its upstream must be asked first. Knowing a digest grants no access: the upstream has to have
 * given or confirmed it for this repo.
 */
export class Authorizer {
  readonly #context: AuthorizeContext;

  constructor(context: AuthorizeContext) {
    this.#context = context;
  }

  /**
   * Where the repo gets a blob from, decided in this tick: `store`: from what is stored; `fill`: from its own registry's fill,
   * running or to be started. A promise: something has to be waited for first; it resolves to what is proven then.
   */
  sourceOf(
    repo: Repo,
    digest: Digest,
    proven: Proven,
    deadline: Deadline,
  ): 'store' | 'fill' | Promise<Proven> {
    const { access, fills, store } = this.#context;
    const isStored = store.describe(digest) !== undefined;
    const isGranted = proven === 'stored' || access.grants(repo, digest);
    if (isStored && isGranted) return 'store';
    const fill = fills.of(repo, digest);
    if (fill?.isOver) return fill.ended.then(() => proven);
    // Its own upstream gives it; one under a pattern is not granted it before it is verified.
    const isOwn = fill?.repo.key === repo.key;
    if (fill && isOwn && (!fill.isOpen || isGranted || isFromPattern(repo))) return 'fill';
    // Another repo's question: a no would not be ours, and a yes may make the content public.
    if (fill && !fill.isOpen) return fill.settled.then(() => proven);
    if (isStored) return this.prove(repo, digest, 'blob', deadline);
    const isArriving = fill !== undefined || store.hasPartial(repo.registry, digest);
    return isArriving && !isGranted && proven === undefined
      ? this.prove(repo, digest, 'arriving', deadline)
      : 'fill';
  }

  /** Asks the upstream whether the repo has the digest; a link that has expired is enough while it cannot be asked. */
  async prove(
    repo: Repo,
    digest: Digest,
    what: 'blob' | 'manifest' | 'arriving',
    deadline: Deadline,
  ): Promise<Proven> {
    const { access, fills, proofs, policy } = this.#context;
    try {
      const isProven = await (what === 'arriving'
        ? proofs.arriving(repo, digest, fills.of(repo, digest)?.size, deadline)
        : proofs.stored(repo, digest, what, deadline));
      if (!isProven) return undefined;
      return what === 'arriving' ? 'arriving' : 'stored';
    } catch (error) {
      const fault = toMirrorError(error);
      if (mayServeAfter(fault, policy()) && access.grantedOnce(repo, digest)) return 'stored';
      if (fault.row.definite) access.revoke(repo, digest);
      throw error;
    }
  }
}
