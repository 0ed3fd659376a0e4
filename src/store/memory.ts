import { LRUCache } from 'lru-cache';
import { blobMediaType, type Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { recognise } from '../oci/manifest.ts';
import type { Clock } from '../util/clock.ts';
import type { Catalog } from './catalog/catalog.ts';
import type { Held } from './reading/stored-content.ts';

/** What is larger is read from its file each time. */
export const memoryEntryBytes = 1024 * 1024;
const memoryBytes = 64 * 1024 * 1024;
/** What an entry and each of its children take beside the bytes, measured. */
const entryBytes = 512;
const childBytes = 250;

/** What content takes in memory with its children, in bytes, about. */
export function memoryOf({ bytes, children }: Held): number {
  return bytes.length + entryBytes + children.length * childBytes;
}

/** Verified content in memory: what is small and was used last, and what is on its way to disk. */
export class Memory {
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #recent = new LRUCache<Digest, Held>({
    maxSize: memoryBytes,
    maxEntrySize: 4 * memoryEntryBytes,
    sizeCalculation: memoryOf,
  });
  /** On the way to disk: findable until the catalog has them. */
  readonly #settling = new Map<Digest, Held>();
  readonly #written = new Map<Digest, Promise<void>>();

  constructor(catalog: Catalog, clock: Clock) {
    this.#catalog = catalog;
    this.#clock = clock;
  }

  get(digest: Digest): Held | undefined {
    return this.#recent.get(digest) ?? this.#settling.get(digest);
  }

  /** What is on its way to disk. */
  settling(): Iterable<Digest> {
    return this.#settling.keys();
  }

  /** How large a manifest on its way to disk says that the digest is. */
  sizeOfChild(digest: Digest): number | undefined {
    for (const { children } of this.#settling.values()) {
      const child = children.find((each) => each.digest === digest);
      if (child) return child.size;
    }
    return undefined;
  }

  /**
   * Takes verified content; `write` brings it to disk, and never rejects. Returns when that is done; undefined: it is on its way
   * already.
   */
  put(held: Held, write: () => Promise<void>): Promise<void> | undefined {
    const { digest } = held;
    this.#recent.set(digest, held);
    if (this.#settling.has(digest)) return undefined;
    this.#settling.set(digest, held);
    const written = write().finally(() => {
      this.#settling.delete(digest);
      this.#written.delete(digest);
    });
    this.#written.set(digest, written);
    return written;
  }

  /** Resolves when what was put is on disk, or could not be written. */
  async settled(digest: Digest): Promise<void> {
    await this.#written.get(digest);
  }

  /**
   * Keeps what was read of a stored blob and verified. Returns its media type: the catalog of an older version may have another
   * one.
   */
  remember(row: Descriptor, bytes: Buffer): string {
    const { digest } = row;
    const manifest = row.mediaType === blobMediaType ? undefined : recognise(bytes);
    const held = { ...row, children: this.#catalog.children.of(digest), ...manifest, bytes };
    if (!this.#catalog.blobs.get(digest)) return held.mediaType;
    const mayWrite = !this.#catalog.connection.queue.isWaiting && !this.#catalog.connection.isDamaged;
    if (held.mediaType !== row.mediaType && mayWrite)
      this.#catalog.blobs.add(held, held.children, this.#clock.now());
    this.#recent.set(digest, held);
    return held.mediaType;
  }

  /** It is gone from the store; what is on its way there stays. */
  forget(digest: Digest): void {
    this.#recent.delete(digest);
  }
}
