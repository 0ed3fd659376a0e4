import { LRUCache } from 'lru-cache';
import { blobMediaType, type Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { recognise } from '../oci/manifest.ts';
import type { Clock } from '../util/clock.ts';
import type { Catalog } from './catalog/catalog.ts';
import type { BufferedBlob } from './reading/stored-content.ts';

/** Larger blobs are read from disk each time. */
export const memoryEntryBytes = 1024 * 1024;
const memoryBytes = 64 * 1024 * 1024;
/** Memory use of an entry and of each child beside the bytes, measured. */
const entryBytes = 512;
const childBytes = 250;

/** Approximate memory use of a blob with its children, in bytes. */
export function memoryOf({ bytes, children }: BufferedBlob): number {
  return bytes.length + entryBytes + children.length * childBytes;
}

/** Verified blobs in memory: recently used small ones, and those being written to disk. */
export class Memory {
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #recent = new LRUCache<Digest, BufferedBlob>({
    maxSize: memoryBytes,
    maxEntrySize: 4 * memoryEntryBytes,
    sizeCalculation: memoryOf,
  });
  /** Being written to disk; readable until they are in the catalog. */
  readonly #beingWritten = new Map<Digest, BufferedBlob>();
  readonly #writes = new Map<Digest, Promise<void>>();

  constructor(catalog: Catalog, clock: Clock) {
    this.#catalog = catalog;
    this.#clock = clock;
  }

  get(digest: Digest): BufferedBlob | undefined {
    return this.#recent.get(digest) ?? this.#beingWritten.get(digest);
  }

  /** Blobs being written to disk. */
  digestsBeingWritten(): Iterable<Digest> {
    return this.#beingWritten.keys();
  }

  /** Size that a manifest being written to disk gives for the digest. */
  sizeOfChild(digest: Digest): number | undefined {
    for (const { children } of this.#beingWritten.values()) {
      const child = children.find((each) => each.digest === digest);
      if (child) return child.size;
    }
    return undefined;
  }

  /**
   * Adds a verified blob. `write` writes it to disk and never rejects. Returns its promise; undefined: it is being
   * written already.
   */
  put(blob: BufferedBlob, write: () => Promise<void>): Promise<void> | undefined {
    const { digest } = blob;
    this.#recent.set(digest, blob);
    if (this.#beingWritten.has(digest)) return undefined;
    this.#beingWritten.set(digest, blob);
    const written = write().finally(() => {
      this.#beingWritten.delete(digest);
      this.#writes.delete(digest);
    });
    this.#writes.set(digest, written);
    return written;
  }

  /** Resolves when the blob is on disk, or could not be written. */
  async persisted(digest: Digest): Promise<void> {
    await this.#writes.get(digest);
  }

  /**
   * Caches the verified bytes of a stored blob. Returns the media type, which may be wrong in a catalog of an older
   * version.
   */
  remember(row: Descriptor, bytes: Buffer): string {
    const { digest } = row;
    const manifest = row.mediaType === blobMediaType ? undefined : recognise(bytes);
    const blob = { ...row, children: this.#catalog.children.of(digest), ...manifest, bytes };
    if (!this.#catalog.blobs.get(digest)) return blob.mediaType;
    const mayWrite = !this.#catalog.connection.queue.isWaiting && !this.#catalog.connection.isDamaged;
    if (blob.mediaType !== row.mediaType && mayWrite)
      this.#catalog.blobs.add(blob, blob.children, this.#clock.now());
    this.#recent.set(digest, blob);
    return blob.mediaType;
  }

  /** Drops the cached blob; one that is being written stays. */
  forget(digest: Digest): void {
    this.#recent.delete(digest);
  }
}
