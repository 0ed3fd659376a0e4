import type { Content } from '../../oci/content.ts';
import type { Digest } from '../../oci/digest.ts';
import type { Want } from '../../oci/range.ts';
import type { Repo } from '../../oci/repo.ts';
import type { Upstreams } from '../upstreams.ts';
import { Connections } from './connections.ts';
import { Fill, type FillContext, type FillOptions } from './fill.ts';

export interface FillsOptions extends FillOptions {
  /** Parallel blob bodies over all upstreams. */
  maxConnections: number;
}

export interface FillsContext extends Omit<FillContext, 'connections'> {
  readonly upstreams: Upstreams;
}

/**
 * The running fills, one for each registry and digest. Until a digest is verified, only clients of the registry that
 * sends it may read or wait for it. A commit writes the catalog row before the fill leaves the table,
 * so a request finds the content in one of the two. A failed fill leaves the table before its readers get the fault; until then
 * `isOver` tells callers to wait for its end instead of joining it.
 */
export class Fills {
  readonly #options: () => FillsOptions;
  readonly #context: FillContext;
  readonly #upstreams: Upstreams;
  readonly #running = new Map<string, Fill>();

  constructor(options: () => FillsOptions, { upstreams, ...context }: FillsContext) {
    this.#options = options;
    this.#context = { ...context, connections: new Connections(() => options().maxConnections) };
    this.#upstreams = upstreams;
  }

  get active(): number {
    return this.#running.size;
  }

  /** The running fill of the digest from the repo's registry. */
  of(repo: Repo, digest: Digest): Fill | undefined {
    return this.#running.get(keyOf(repo, digest));
  }

  /**
   * Content, once the upstream's headers are in: of a new fill (`miss`), a running one (`joined`), or a verified one
   * about to be committed (`hit`). The caller must have proven that the repo may read what is being fetched.
   */
  join(
    repo: Repo,
    digest: Digest,
    want: Want,
  ): { content: Promise<Content>; result: 'miss' | 'joined' | 'hit' } {
    const running = this.of(repo, digest);
    if (running) return { content: running.lease(want), result: running.isVerified ? 'hit' : 'joined' };
    const fill = this.#create(repo, digest, true);
    const content = fill.lease(want);
    fill.start();
    return { content, result: 'miss' };
  }

  /** Starts a fill without a reader. Resolves when it has ended, whatever the outcome. */
  async prefetch(repo: Repo, digest: Digest): Promise<void> {
    let fill: Fill;
    try {
      fill = this.#create(repo, digest, false);
    } catch {
      // The upstream is not configured any more, or the catalog cannot be read: the client that needs the blob gets
      // the fault.
      return;
    }
    fill.wantWhole();
    fill.start();
    await fill.ended;
  }

  /**
   * Stops fills without readers (`idle`) or all, except those that have all bytes. Resolves when all fills running now
   * have ended.
   */
  async stop(which: 'idle' | 'all'): Promise<void> {
    const fills = [...this.#running.values()];
    for (const fill of fills) if (which === 'all' || !fill.hasReaders) fill.stop();
    await Promise.all(fills.map((fill) => fill.ended));
  }

  #create(repo: Repo, digest: Digest, isProven: boolean): Fill {
    const key = keyOf(repo, digest);
    const fill = new Fill(repo, digest, this.#options(), {
      ...this.#context,
      upstream: this.#upstreams.of(repo),
      isProven,
      unregister: () => {
        if (this.#running.get(key) === fill) this.#running.delete(key);
      },
    });
    this.#running.set(key, fill);
    return fill;
  }
}

function keyOf({ registry }: Repo, digest: Digest): string {
  return `${registry} ${digest}`;
}
