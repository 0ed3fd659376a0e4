import type { Content } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { Want } from '../oci/range.ts';
import { isAnybodys, type Repo } from '../oci/repo.ts';
import { orLate } from '../util/deadline.ts';
import { Connections } from './connections.ts';
import { Fill, type FillContext, type FillOptions } from './fill.ts';
import type { Upstreams } from './upstreams.ts';

export interface FillsOptions extends FillOptions {
  /** Blob bodies at once, over all upstreams. */
  maxConnections: number;
}

export interface FillsContext extends Omit<FillContext, 'connections'> {
  readonly upstreams: Upstreams;
}

/**
 * The downloads in progress: one for each digest, owned by nobody's request. A fill ends by commit or by fault, not by a
 * client leaving. A commit has its catalog row before the fill leaves the table, and a failed fill leaves the table
 * before its readers hear of it: so a newcomer finds the content in one of the two, and nobody joins a dead fill.
 */
export class Fills {
  readonly #options: FillsOptions;
  readonly #context: FillContext;
  readonly #upstreams: Upstreams;
  readonly #running = new Map<Digest, Fill>();

  constructor(options: FillsOptions, { upstreams, ...context }: FillsContext) {
    this.#options = options;
    this.#context = { ...context, connections: new Connections(options.maxConnections) };
    this.#upstreams = upstreams;
  }

  get active(): number {
    return this.#running.size;
  }

  has(digest: Digest): boolean {
    return this.#running.has(digest);
  }

  /** Whether it is on its way for this repo: its own upstream gives it. */
  isFor(digest: Digest, repo: Repo): boolean {
    return this.#running.get(digest)?.repo.key === repo.key;
  }

  /** The size of what is arriving, if it is known. */
  sizeOf(digest: Digest): number | undefined {
    return this.#running.get(digest)?.size;
  }

  /** The fill whose upstream has not answered yet, and for which repo it asked. */
  opening(digest: Digest): { repo: Repo; settled: Promise<unknown> } | undefined {
    const fill = this.#running.get(digest);
    return fill && !fill.isOpen ? fill : undefined;
  }

  /** Resolves when nothing of the digest is on its way any more. Rejects with the signal's reason. */
  async whole(digest: Digest, signal: AbortSignal): Promise<void> {
    const fill = this.#running.get(digest);
    if (fill) await orLate(fill.ended, signal, () => signal.reason);
  }

  /** The fill that has ended, though something of it is still being ended: what comes after it has to wait so long. */
  ending(digest: Digest): Promise<void> | undefined {
    const fill = this.#running.get(digest);
    return fill?.isOver ? fill.ended : undefined;
  }

  /**
   * The content, as soon as the upstream's headers are in: of a new fill (`miss`), of one that was there (`joined`), or
   * of one that has nothing left to do but to be committed (`hit`).
   */
  join(
    repo: Repo,
    digest: Digest,
    want: Want,
  ): { content: Promise<Content>; result: 'miss' | 'joined' | 'hit' } {
    const running = this.#running.get(digest);
    if (running) return { content: running.lease(want), result: running.isVerified ? 'hit' : 'joined' };
    const fill = this.#create(repo, digest, !isAnybodys(repo));
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
    const fill = new Fill(repo, digest, this.#options, {
      ...this.#context,
      upstream: this.#upstreams.of(repo),
      isProven,
      leave: () => {
        if (this.#running.get(digest) === fill) this.#running.delete(digest);
      },
    });
    this.#running.set(digest, fill);
    return fill;
  }
}
