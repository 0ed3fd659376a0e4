import { LRUCache } from 'lru-cache';
import { blobMediaType, type Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { recognise } from '../oci/manifest.ts';
import type { Clock } from '../util/clock.ts';
import type { Catalog } from './catalog/catalog.ts';
import type { Held } from './reading/stored-content.ts';

/** Larger blobs are read from disk each time. */
export const memoryEntryBytes = 1024 * 1024;
const memoryBytes = 64 * 1024 * 1024;
/** Memory use of an entry and of each child beside the bytes, measured. */
const entryBytes = 512;
const childBytes = 250;

/** Approximate memory use of a blob with its children, in bytes. */
export function memoryOf({ bytes, children }: Held): number {
  return bytes.length + entryBytes + children.length * childBytes;
}

/** Verified blobs in memory: recently used small ones, and those being written to disk. */
export class Memory {
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #recent = new LRUCache<Digest, Held>({
    maxSize: memoryBytes,
    maxEntrySize: 4 * memoryEntryBytes,
    sizeCalculation: memoryOf,
  });
  /** Being written to disk; readable until they are in the catalog. */
  readonly #settling = new Map<Digest, Held>();
  readonly #written = new Map<Digest, Promise<void>>();

  constructor(catalog: Catalog, clock: Clock) {
    this.#catalog = catalog;
    this.#clock = clock;
  }

  get(digest: Digest): Held | undefined {
    return this.#recent.get(digest) ?? this.#settling.get(digest);
  }

  /** Blobs being written to disk. */
  settling(): Iterable<Digest> {
    return this.#settling.keys();
  }

  /** Size that a manifest being written to disk gives for the digest. */
  sizeOfChild(digest: Digest): number | undefined {
    for (const { children } of this.#settling.values()) {
      const child = children.find((each) => each.digest === digest);
      if (child) return child.size;
    }
    return undefined;
  }

  /**
   * Adds a verified blob. `write` writes it to disk and never rejects. Returns its promise; undefined: it is being
   * written already.
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

  /** Resolves when the blob is on disk, or could not be written. */
  async settled(digest: Digest): Promise<void> {
    await this.#written.get(digest);
  }

  /**
   * Caches the verified bytes of a stored blob. Returns the media type, which may be wrong in a catalog of an older
   * version.
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

  /** Drops the cached blob; one that is being written stays. */
  forget(digest: Digest): void {
    this.#recent.delete(digest);
  }
}
