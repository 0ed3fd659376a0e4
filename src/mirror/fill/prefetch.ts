import { LRUCache } from 'lru-cache';
import type { Digest } from '../../oci/digest.ts';
import type { Child } from '../../oci/manifest.ts';
import type { Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Fills } from './fills.ts';

export interface PrefetchContext {
  /** Whether prefetch is enabled. */
  readonly isEnabled: () => boolean;
  readonly store: BlobStore;
  readonly fills: Fills;
  /** Total bytes received from upstreams. */
  readonly receivedBytes: () => number;
  /** Layers dropped because the queue or the manifest is too long. */
  readonly onSkipped: (layers: number) => void;
  /** A prefetched layer was requested in time (`used`), or not; `bytes`: its size. */
  readonly onOutcome: (bytes: number, used: boolean) => void;
}

interface Layer {
  readonly repo: Repo;
  readonly digest: Digest;
  readonly size: number;
}

interface Chain {
  readonly manifest: Digest;
  readonly layers: readonly Child[];
}

/** A client requests the layers soon after the manifest, or not at all. */
const chainTtlMs = 5 * 60_000;
const maxChains = 10_000;
/** Layers remembered for one manifest; below, for all. */
const maxLayers = 1000;
const maxLayersOfChains = 200_000;
const maxQueued = 10_000;
const maxPrefetched = 10_000;
const stepMs = 100;
const firstLimit = 2;
/** The total rate must grow by this factor for the limit to rise by one. */
const minGrowth = 1.05;

/**
 * Prefetches layers. A client that misses one layer needs all layers after it in the manifest, but requests only a few
 * at a time. These are fetched at low priority, a few in parallel: one more for as long as that raises the total rate.
 */
export class Prefetch {
  readonly #context: PrefetchContext;
  /** Layers of the last manifest served, by client and repo. */
  readonly #chains = new LRUCache<string, Chain>({
    max: maxChains,
    maxSize: maxLayersOfChains,
    sizeCalculation: ({ layers }) => layers.length,
    ttl: chainTtlMs,
  });
  /** Size of each layer prefetched and not requested yet. */
  readonly #prefetched: LRUCache<Digest, number>;
  readonly #queue = new Map<Digest, Layer>();
  /** Layers being prefetched and not requested yet. */
  readonly #running = new Set<Digest>();
  #limit = firstLimit;
  #bestRate = 0;
  #receivedBytes = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(context: PrefetchContext) {
    this.#context = context;
    this.#prefetched = new LRUCache({
      max: maxPrefetched,
      ttl: chainTtlMs,
      dispose: (bytes, _digest, reason) => {
        if (reason !== 'set') context.onOutcome(bytes, reason === 'delete');
      },
    });
  }

  /** A client was served a manifest. */
  manifestServed(client: string, repo: Repo, manifest: Digest): void {
    if (this.#prefetched.size > 0) this.#prefetched.purgeStale();
    if (!this.#context.isEnabled()) return;
    const key = `${client} ${repo.key}`;
    if (this.#chains.get(key)?.manifest === manifest) return;
    const layers = this.#context.store.children(manifest).filter((child) => child.kind === 'layer');
    if (layers.length > maxLayers) this.#context.onSkipped(layers.length - maxLayers);
    if (layers.length > 0) this.#chains.set(key, { manifest, layers: layers.slice(0, maxLayers) });
  }

  /** A client requested a whole blob; `missed`: it was neither stored nor being fetched. Never throws. */
  requested(client: string, repo: Repo, digest: Digest, missed: boolean): void {
    try {
      this.#requested(client, repo, digest, missed);
    } catch {
      // The request itself reports an unreadable catalog.
    }
  }

  stop(): void {
    this.#queue.clear();
    clearInterval(this.#timer);
  }

  #requested(client: string, repo: Repo, digest: Digest, missed: boolean): void {
    this.#queue.delete(digest);
    this.#prefetched.delete(digest);
    if (this.#running.delete(digest)) this.#start();
    if (!missed) return;
    const chain = this.#chains.get(`${client} ${repo.key}`)?.layers;
    const position = chain?.findIndex((layer) => layer.digest === digest) ?? -1;
    if (!chain || position < 0) return;
    for (const layer of chain.slice(position + 1)) {
      if (this.#queue.size >= maxQueued) this.#context.onSkipped(1);
      else if (!layer.foreign) this.#queue.set(layer.digest, { ...layer, repo });
    }
    this.#start();
  }

  #isPresent(repo: Repo, digest: Digest): boolean {
    const { store, fills } = this.#context;
    return store.describe(digest) !== undefined || fills.of(repo, digest) !== undefined;
  }

  #start(): void {
    try {
      this.#startSome();
    } catch {
      // The request itself reports an unreadable catalog.
      this.#queue.clear();
    }
  }

  #startSome(): void {
    if (!this.#context.isEnabled()) this.#queue.clear();
    for (const [digest, { repo, size }] of this.#queue) {
      if (this.#running.size >= this.#limit) break;
      this.#queue.delete(digest);
      if (this.#isPresent(repo, digest)) continue;
      this.#running.add(digest);
      this.#prefetched.set(digest, size);
      void this.#context.fills.prefetch(repo, digest).then(() => {
        // A failed fetch counts neither as used nor as wasted.
        if (this.#prefetched.has(digest) && !this.#isPresent(repo, digest)) this.#prefetched.set(digest, 0);
        this.#running.delete(digest);
        this.#start();
      });
    }
    if (this.#queue.size > 0 && !this.#timer) {
      this.#receivedBytes = this.#context.receivedBytes();
      this.#timer = setInterval(() => this.#adjustLimit(), stepMs).unref();
    } else if (this.#queue.size === 0 && this.#running.size === 0) this.#reset();
  }

  #adjustLimit(): void {
    const receivedBytes = this.#context.receivedBytes();
    const rate = receivedBytes - this.#receivedBytes;
    this.#receivedBytes = receivedBytes;
    if (rate <= this.#bestRate * minGrowth) return;
    this.#bestRate = rate;
    this.#limit += 1;
    this.#start();
  }

  #reset(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#limit = firstLimit;
    this.#bestRate = 0;
  }
}
