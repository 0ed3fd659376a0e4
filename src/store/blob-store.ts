import { stat } from 'node:fs/promises';
import { blobMediaType, smallSize, type Content, type Descriptor } from '../oci/content.ts';
import { isDigest, type Digest } from '../oci/digest.ts';
import type { Child } from '../oci/manifest.ts';
import { assemble, type StoreParts } from './assembly.ts';
import type { Catalog } from './catalog/catalog.ts';
import { explain } from './catalog/damage.ts';
import type { ListTable } from './catalog/tables/lists.ts';
import type { StoreContext, StoreLimits, StoreOptions } from './context.ts';
import type { Deletion } from './deletion.ts';
import type { Health } from './disk/health.ts';
import { blobPath, blobsPath, catalogPath, lockPath } from './disk/layout.ts';
import { lockDirectory } from './disk/lock.ts';
import type { Ingest } from './ingest/ingest.ts';
import type { Verifier } from './ingest/verifier.ts';
import type { Leases } from './leases.ts';
import { memoryEntryBytes, type Memory } from './memory.ts';
import { MemoryContent, SmallContent, StoredContent, type BufferedBlob } from './reading/stored-content.ts';
import type { Pins } from './room/pins.ts';
import { reconcile } from './upkeep/recovery.ts';
import {
  isDiskTrouble,
  prepareDirectory,
  refuseMissingCatalog,
  removeLeftovers,
  warnOfLimits,
  warnOfNetwork,
} from './upkeep/startup-checks.ts';

const lockedAtCloseMs = 5000;

/**
 * Content-addressed store on local disk: files named by digest, indexed in SQLite. A blob becomes visible when it is
 * verified and synced to disk. Leased blobs are not evicted.
 */
export class BlobStore {
  readonly catalog: Catalog;
  readonly pins: Pins;
  readonly health: Health;
  readonly verifier: Verifier;
  readonly #parts: StoreParts;
  readonly #deletion: Deletion;
  readonly #leases: Leases;
  readonly #memory: Memory;
  /** Wall clock, since it is compared with file times. */
  readonly #startedAt = Date.now();

  /** Throws when the directory is unusable, in use, or of a newer schema version. */
  static async open(options: StoreOptions, context: StoreContext): Promise<BlobStore> {
    try {
      return await BlobStore.#open(options, context);
    } catch (error) {
      if (!isDiskTrouble(error) || options.upkeep === false) throw error;
      // The disk may be full: delete partials and quarantined files, and retry.
      await removeLeftovers(options.path);
      return await BlobStore.#open(options, context).catch((again: unknown) => {
        if (!isDiskTrouble(again)) throw again;
        return BlobStore.#openUnwritable(options, context, again);
      });
    }
  }

  /** For a disk that is not writable: stored blobs are served, from a copy of the catalog in memory. */
  static #openUnwritable(options: StoreOptions, context: StoreContext, why: unknown): BlobStore {
    const store = new BlobStore(options, assemble(options, context, undefined));
    store.health.failed(why);
    return store;
  }

  static async #open(options: StoreOptions, context: StoreContext): Promise<BlobStore> {
    await prepareDirectory(options.path);
    const unlock = lockDirectory(lockPath(options.path));
    try {
      await warnOfNetwork(options.path, context.log);
      await refuseMissingCatalog(options.path);
      const { ino: inode } = await stat(lockPath(options.path));
      const parts = assemble(options, context, { inode, unlock });
      const store = new BlobStore(options, parts);
      await parts.catalogJobs.load();
      await parts.directory.load().catch(async (error: unknown) => {
        await store.close();
        throw error;
      });
      if (options.upkeep !== false) {
        await warnOfLimits(options.path, options.limits(), store.bytes, context.log);
        parts.upkeep.tidy();
      }
      return store;
    } catch (error) {
      unlock();
      throw explain(error, catalogPath(options.path));
    }
  }

  private constructor({ upkeep = true }: StoreOptions, parts: StoreParts) {
    this.#parts = parts;
    this.#deletion = parts.deletion;
    this.#leases = parts.leases;
    this.#memory = parts.memory;
    this.catalog = parts.catalog;
    this.pins = parts.pins;
    this.health = parts.health;
    this.verifier = parts.verifier;
    const { background, catalogJobs, scrubber } = parts;
    if (upkeep) parts.upkeep.start();
    if (!this.health.isCatalogInMemory) catalogJobs.checkIfLarge();
    if (upkeep) background.detach(scrubber.run(background.signal), 'the scrub');
  }

  /**
   * Takes over limits that are about to change: pins, before a lower cap. Rejects with `OperationError`, and nothing changes, when they
   * do not fit. What it resolves to is to be called when they have changed.
   */
  async prepare(limits: StoreLimits): Promise<() => void> {
    const { background, pins, upkeep } = this.#parts;
    await background.track(pins.takeOver(limits));
    return () => upkeep.tidy();
  }

  /** Disk use, reservations included. */
  get bytes(): number {
    return this.#parts.space.bytes;
  }

  /** Disk use of ingests, running or unfinished. */
  get pendingBytes(): number {
    return this.#parts.ingests.pendingBytes;
  }

  /** Why pulled content cannot be stored; undefined: it can. */
  get trouble(): string | undefined {
    const lowOnSpace = 'the file system has less free space than store.minFreeBytes';
    return this.health.trouble ?? (this.#parts.evictor.isLowOnSpace ? lowOnSpace : undefined);
  }

  describe(digest: Digest): Descriptor | undefined {
    return this.#memory.get(digest) ?? this.#deletion.stored(digest);
  }

  /** Whether a blob whose digest starts with `prefix` is stored. */
  holds(prefix: string): boolean {
    if (isDigest(prefix)) return this.describe(prefix) !== undefined;
    const known = [...this.#memory.digestsBeingWritten(), ...this.catalog.blobs.withPrefix(prefix)];
    return known.some((digest) => digest.startsWith(prefix) && this.describe(digest) !== undefined);
  }

  /** Children of a stored manifest. */
  children(digest: Digest): readonly Child[] {
    return this.#memory.get(digest)?.children ?? this.catalog.children.of(digest);
  }

  /** Size that a stored manifest gives for the digest. */
  sizeOfChild(digest: Digest): number | undefined {
    return this.#memory.sizeOfChild(digest) ?? this.catalog.children.sizeOf(digest);
  }

  /** Leases a stored blob. Synchronous: lookup and lease happen in one tick. */
  open(digest: Digest): Content | undefined {
    const inMemory = this.openFromMemory(digest);
    if (inMemory) return inMemory;
    const { context, buffers, damage } = this.#parts;
    const row = this.#deletion.stored(digest);
    if (!row) return undefined;
    this.catalog.uses.add(digest, context.clock.now());
    const file = this.#leases.take(row, damage);
    if (row.size > memoryEntryBytes || (row.size > smallSize && row.mediaType === blobMediaType))
      return new StoredContent(row, file, buffers);
    return new SmallContent(row, file, (bytes) => this.#memory.remember(row, bytes));
  }

  /** As `open`, but only if the blob is in memory: then nothing has to be prepared. */
  openFromMemory(digest: Digest): Content | undefined {
    const blob = this.#memory.get(digest);
    if (!blob) return undefined;
    this.catalog.uses.add(digest, this.#parts.context.clock.now());
    return new MemoryContent(blob);
  }

  /** A client was sent a whole stored blob: may schedule a re-verification. */
  noteFullDownload(digest: Digest, client: string): void {
    const file = this.#leases.get(digest);
    if (!file) return;
    this.#parts.recheck.noteFullDownload(digest, client, !file.wasFullyRead);
    file.wasFullyRead = true;
  }

  /** Whether an unfinished ingest from the registry left bytes of the blob. */
  hasPartial(registry: string, digest: Digest): boolean {
    return this.#parts.ingests.partials.has(registry, digest);
  }

  /**
   * Starts a growing file, invisible until committed. It resumes from what an earlier ingest from the same registry
   * left.
   */
  ingest(registry: string, digest: Digest, onReadersChanged: () => void = () => undefined): Ingest {
    const { ingests, evictor } = this.#parts;
    return ingests.start({ registry, digest, onReadersChanged }, evictor);
  }

  /** Publishes a verified ingest. Rejects when it cannot be stored: then call `fail`. */
  commit(ingest: Ingest, mediaType: string): Promise<void> {
    return this.#parts.publishing.commit(ingest, mediaType);
  }

  /** Adds verified bytes. They can be opened at once, and are written to disk in the background. */
  put(bytes: Buffer, { digest, mediaType, children }: Omit<BufferedBlob, 'bytes' | 'size'>): Content {
    const { background, publishing } = this.#parts;
    const blob: BufferedBlob = { digest, size: bytes.length, mediaType, bytes, children };
    const written = this.#memory.put(blob, () => publishing.persist(blob));
    if (written) void background.track(written);
    return new MemoryContent(blob);
  }

  /**
   * Writes to tag and referrers lists, in the order of the calls; delayed while the catalog's log is long. `bytes`:
   * memory blob meanwhile; beyond a limit the write is dropped. Rejects with SQLite errors.
   */
  async writeLists(write: (lists: ListTable) => void, bytes = 0): Promise<void> {
    const { background, catalogLog } = this.#parts;
    const written = catalogLog.writeIfRoom(bytes, () => write(this.catalog.lists));
    if (written) await background.track(written);
  }

  /** Resolves when the blob is on disk, or could not be written. */
  persisted(digest: Digest): Promise<void> {
    return this.#memory.persisted(digest);
  }

  pathOf(digest: Digest): string {
    return blobPath(this.#parts.root, digest);
  }

  /** Moves a corrupt blob to quarantine and reports it. */
  quarantine(digest: Digest, why: string): Promise<void> {
    return this.#parts.damage.quarantine(digest, why);
  }

  /** Deletes blobs that are neither in use nor pinned. Resolves to the deleted digests. */
  remove(digests: Iterable<Digest>): Promise<Digest[]> {
    return this.#deletion.remove(digests);
  }

  /**
   * Imports a file. `bring` is called when space is reserved: it places the file at `path`, verifies and identifies
   * it.
   */
  adopt(
    digest: Digest,
    size: number,
    bring: (path: string) => Promise<{ mediaType: string; children: readonly Child[] }>,
  ): Promise<void> {
    return this.#parts.publishing.adopt(digest, size, bring);
  }

  /** Makes files and catalog rows agree after a crash. `signal` ends it early. */
  async reconcile(signal: AbortSignal): Promise<{ strayFiles: number; lostBlobs: number }> {
    const { root, background, catalogJobs, catalogLog, damage } = this.#parts;
    const ifUndamaged = <T>(found: T): T => {
      // A file without a row is stray only if all rows are readable.
      this.catalog.connection.expectUndamaged();
      return found;
    };
    const store = {
      digestsWithPrefix: (prefix: string) => ifUndamaged(this.catalog.blobs.withPrefix(prefix)),
      describe: (digest: Digest) => ifUndamaged(this.describe(digest)),
      open: (digest: Digest) => this.open(digest),
    };
    try {
      await catalogJobs.checking;
      // A catalog in memory may be older than the files.
      if (catalogLog.isFrozen) return { strayFiles: 0, lostBlobs: 0 };
      const work = reconcile(blobsPath(root), store, this.#startedAt, signal);
      const strayFiles = await background.track(work);
      return { strayFiles, lostBlobs: damage.lostBlobs };
    } catch (error) {
      if (this.catalog.connection.isDamaged) return { strayFiles: 0, lostBlobs: damage.lostBlobs };
      throw error;
    } finally {
      damage.isReconciled = true;
    }
  }

  async close(): Promise<void> {
    const { background, catalogLog, directory, recheck, upkeep, verifier, workers } = this.#parts;
    background.stop();
    // If another program keeps the catalog locked, waiting writes are dropped.
    const locked = setInterval(() => this.catalog.connection.queue.giveUp(), lockedAtCloseMs).unref();
    await this.pins.close();
    await recheck.close();
    await background.ended();
    clearInterval(locked);
    await upkeep.flushUses();
    await catalogLog.checkpoint();
    this.catalog.close();
    await Promise.all([verifier.close(), workers.close()]);
    directory.unlock();
  }
}
