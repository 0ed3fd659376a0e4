import type { Content } from '../../oci/content.ts';
import type { Digest } from '../../oci/digest.ts';
import type { Want } from '../../oci/range.ts';
import type { Repo } from '../../oci/repo.ts';
import type { Upstreams } from '../upstreams.ts';
import { Connections } from './connections.ts';
import { Fill, type FillContext, type FillOptions } from './fill.ts';

export interface FillsOptions extends FillOptions {
  /** Blob bodies at once, over all upstreams. */
  maxConnections: number;
}

export interface FillsContext extends Omit<FillContext, 'connections'> {
  readonly upstreams: Upstreams;
}

/**
 * The downloads in progress: one for each registry and digest, owned by no request. Until a digest is verified its bytes
 * are only what one registry says they are, so no other registry's clients read them or wait for them. A fill ends by
 * commit or by fault, not by a client leaving. A commit has its catalog row before the fill leaves the table, and a failed
 * fill leaves the table before its readers hear of it: so a newcomer finds the content in one of the two, and nobody joins
 * a dead fill.
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

  /** The fill of that digest from the repo's registry. */
  of(repo: Repo, digest: Digest): Fill | undefined {
    return this.#running.get(keyOf(repo, digest));
  }

  /**
   * The content, as soon as the upstream's headers are in: of a new fill (`miss`), of one that was there (`joined`), or
   * of one that has nothing left to do but to be committed (`hit`). The caller has made sure that the repo may have what
   * is arriving, and what an earlier fill has left.
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

  /** Starts what nobody waits for yet. Resolves when it has ended, one way or another. */
  async prefetch(repo: Repo, digest: Digest): Promise<void> {
    let fill: Fill;
    try {
      fill = this.#create(repo, digest, false);
    } catch {
      // Its upstream is not configured any more, or the catalog cannot be read: who needs it is told.
      return;
    }
    fill.askWhole();
    fill.start();
    await fill.ended;
  }

  /**
   * Ends what nobody reads (`idle`), or everything; except what has all its bytes. Resolves when all that run now have
   * ended.
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
      leave: () => {
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
