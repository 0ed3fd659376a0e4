import { LRUCache } from 'lru-cache';
import type { Digest } from '../../oci/digest.ts';
import type { Child } from '../../oci/manifest.ts';
import type { Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Fills } from './fills.ts';

export interface PrefetchContext {
  /** Whether layers are fetched ahead at all. */
  readonly isOn: () => boolean;
  readonly store: BlobStore;
  readonly fills: Fills;
  /** Bytes that have come from upstreams so far. */
  readonly receivedBytes: () => number;
  /** Bytes that were fetched ahead, and whether somebody then asked for them in time. */
  /** So many layers were not queued, since too many are. */
  readonly onSkipped: (layers: number) => void;
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

/** A client that has got a manifest asks for its layers soon, or not at all. */
const chainForMs = 5 * 60_000;
const maxChains = 10_000;
/** Of one manifest, and in all. */
const maxLayers = 1000;
const maxLayersOfChains = 200_000;
const maxQueued = 10_000;
const maxAhead = 10_000;
const stepMs = 100;
const firstLimit = 2;
/** What one more connection must bring to be worth one more. */
const growth = 1.05;

/**
 * Layers are applied as a chain: a client that lacks one lacks all that follow it in the manifest, though it asks for
 * three at a time. So these are fetched ahead, behind all that clients wait for, a few at once: one more for as long as
 * the total rate still grows by it.
 */
export class Prefetch {
  readonly #context: PrefetchContext;
  /** The layers of the manifest that a client was served last, by client and repo. */
  readonly #chains = new LRUCache<string, Chain>({
    max: maxChains,
    maxSize: maxLayersOfChains,
    sizeCalculation: ({ layers }) => layers.length,
    ttl: chainForMs,
  });
  /** What was fetched ahead and not asked for yet. */
  readonly #ahead: LRUCache<Digest, number>;
  readonly #queue = new Map<Digest, Layer>();
  /** What is being fetched and nobody has asked for yet. */
  readonly #running = new Set<Digest>();
  #limit = firstLimit;
  #bestRate = 0;
  #receivedBytes = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(context: PrefetchContext) {
    this.#context = context;
    this.#ahead = new LRUCache({
      max: maxAhead,
      ttl: chainForMs,
      dispose: (bytes, _digest, reason) => {
        if (reason !== 'set') context.onOutcome(bytes, reason === 'delete');
      },
    });
  }

  /** A client has got a manifest. */
  served(client: string, repo: Repo, manifest: Digest): void {
    if (this.#ahead.size > 0) this.#ahead.purgeStale();
    if (!this.#context.isOn()) return;
    const key = `${client} ${repo.key}`;
    if (this.#chains.get(key)?.manifest === manifest) return;
    const layers = this.#context.store.children(manifest).filter((child) => child.kind === 'layer');
    if (layers.length > maxLayers) this.#context.onSkipped(layers.length - maxLayers);
    if (layers.length > 0) this.#chains.set(key, { manifest, layers: layers.slice(0, maxLayers) });
  }

  /** A client wants the whole of a blob; `missed`: it was neither here nor on its way. Never throws. */
  asked(client: string, repo: Repo, digest: Digest, missed: boolean): void {
    try {
      this.#asked(client, repo, digest, missed);
    } catch {
      // A catalog that cannot be read is told of by those who need it.
    }
  }

  stop(): void {
    this.#queue.clear();
    clearInterval(this.#timer);
  }

  #asked(client: string, repo: Repo, digest: Digest, missed: boolean): void {
    this.#queue.delete(digest);
    this.#ahead.delete(digest);
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

  #isKnown(repo: Repo, digest: Digest): boolean {
    const { store, fills } = this.#context;
    return store.describe(digest) !== undefined || fills.of(repo, digest) !== undefined;
  }

  #start(): void {
    try {
      this.#startSome();
    } catch {
      // A catalog that cannot be read is told of by those who need it.
      this.#queue.clear();
    }
  }

  #startSome(): void {
    if (!this.#context.isOn()) this.#queue.clear();
    for (const [digest, { repo, size }] of this.#queue) {
      if (this.#running.size >= this.#limit) break;
      this.#queue.delete(digest);
      if (this.#isKnown(repo, digest)) continue;
      this.#running.add(digest);
      this.#ahead.set(digest, size);
      void this.#context.fills.prefetch(repo, digest).then(() => {
        // What could not be had is on nobody's account.
        if (this.#ahead.has(digest) && !this.#isKnown(repo, digest)) this.#ahead.set(digest, 0);
        this.#running.delete(digest);
        this.#start();
      });
    }
    if (this.#queue.size > 0 && !this.#timer) {
      this.#receivedBytes = this.#context.receivedBytes();
      this.#timer = setInterval(() => this.#step(), stepMs).unref();
    } else if (this.#queue.size === 0 && this.#running.size === 0) this.#rest();
  }

  #step(): void {
    const receivedBytes = this.#context.receivedBytes();
    const rate = receivedBytes - this.#receivedBytes;
    this.#receivedBytes = receivedBytes;
    if (rate <= this.#bestRate * growth) return;
    this.#bestRate = rate;
    this.#limit += 1;
    this.#start();
  }

  #rest(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#limit = firstLimit;
    this.#bestRate = 0;
  }
}
