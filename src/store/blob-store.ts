import { LRUCache } from 'lru-cache';
import { randomBytes } from 'node:crypto';
import { stat, statfs, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { blobMediaType, smallSize, type Content, type Descriptor } from '../oci/content.ts';
import { hexOf, isDigest, type Digest } from '../oci/digest.ts';
import { recognise, type Child } from '../oci/manifest.ts';
import type { Pattern } from '../oci/pattern.ts';
import type { Logger } from '../telemetry/log.ts';
import type { Clock } from '../util/clock.ts';
import { errorCode, isFault, MirrorError } from '../util/errors.ts';
import { Slots } from '../util/slots.ts';
import { WorkerThread } from '../util/worker.ts';
import { isLarge } from './catalog/catalog-file.ts';
import { Catalog } from './catalog/catalog.ts';
import { explain, isCorrupt } from './catalog/damage.ts';
import type { Prune, Pruned } from './catalog/prune.ts';
import type { Victim, WideManifest } from './catalog/uses.ts';
import { missingFile } from './disk/files.ts';
import {
  backupPath,
  blobPath,
  blobsPath,
  catalogPath,
  ingestPath,
  lockPath,
  quarantinePath,
  walPath,
} from './disk/layout.ts';
import { lockDirectory } from './disk/lock.ts';
import { Ingest } from './ingest/ingest.ts';
import { Partials } from './ingest/partials.ts';
import { Verifier } from './ingest/verifier.ts';
import { Buffers } from './reading/buffers.ts';
import {
  MemoryContent,
  SharedFile,
  SmallContent,
  StoredContent,
  type Held,
} from './reading/stored-content.ts';
import { Evictor, type EvictionReason, type EvictorOptions, type Reservation } from './room/evictor.ts';
import { Pins } from './room/pins.ts';
import { Quarantine } from './room/quarantine.ts';
import { Health } from './upkeep/health.ts';
import { Recheck } from './upkeep/recheck.ts';
import { reconcile } from './upkeep/recovery.ts';
import { Scrubber } from './upkeep/scrubber.ts';
import {
  isDiskTrouble,
  prepareDirectory,
  refuseToBeginAnew,
  removeLeftovers,
  warnOfNetwork,
  warnOfRoom,
} from './upkeep/startup-checks.ts';

export interface StoreOptions extends EvictorOptions {
  /** The data directory. */
  path: string;
  /** Patterns of what stays. */
  pins: readonly Pattern[];
  /** As often everything is read again; 0: never. */
  scrubEveryMs: number;
  /** `false`: nothing is evicted for being idle, written behind or backed up by itself. Default: true. */
  upkeep?: boolean;
}

export interface StoreContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly onEvicted: (reason: EvictionReason) => void;
  /** Rows of the catalog were removed, since they serve nobody. */
  readonly onPruned: (table: 'links' | 'tags', rows: number) => void;
  /** A stored blob was found wrong, and is gone from the store. */
  readonly onDamaged: (damaged: Damaged) => void;
  /** A tag points elsewhere from now on, or is removed; told before that is written to the catalog. */
  readonly onTagChanged: (registry: string, repo: string, tag: string) => void;
}

interface StoreParts {
  /** The inode of the lock; undefined: there is none yet. */
  readonly lockedFile: number | undefined;
  readonly unlock: () => void;
  /** The catalog is a copy of the file. */
  readonly inMemory: boolean;
}

export interface Damaged {
  readonly digest: Digest;
  readonly mediaType: string;
  /** Somebody it was pinned for; undefined: it was not. */
  readonly pinnedFor: { readonly registry: string; readonly repo: string } | undefined;
}

const memoryBytes = 64 * 1024 * 1024;
const memoryEntryBytes = 1024 * 1024;
/** What an entry and each of its children take beside the bytes, measured. */
const entryBytes = 512;
const childBytes = 250;
const maxWritesAtOnce = 8;
const writeBehindMs = 5000;
/** The catalog's files stand beside the cap up to this share of it, and count against it above that. */
const catalogShareOfCap = 0.05;
const leastCatalogBytes = 32 * 1024 * 1024;
/** Of that share the catalog without its free pages; the rest is for its log, its backup, and that one being made anew. */
const catalogShareOfFiles = 0.25;
/** Writing so many rows takes some milliseconds. */
const manyChildren = 500;
/** No image has so many layers: such manifests leave first when the catalog is too large. */
const veryManyChildren = 200;
/** What each of them takes in the catalog, about. */
const childRowBytes = 400;
/** Free pages of the catalog beyond that, and beyond a quarter of it, are given back to the file system. */
const mostFreeBytes = 16 * 1024 * 1024;
const leastFreeBytes = 1024 * 1024;
const shrinkPages = 512;
/** The file system is to have so much left for that. */
const shrinkRoomBytes = 64 * 1024 * 1024;
const shrinkAgainMs = 10_000;
const watchMs = 250;
/** A write-ahead log of this size is cut. */
const cutLogBytes = 4 * 1024 * 1024;
/** And one of this size at once. */
const longLogBytes = 16 * 1024 * 1024;
const lookedAtOnce = 16;
const lockedAtCloseMs = 5000;
const backupEveryMs = 60 * 60_000;
const pruneEveryMs = 60 * 60_000;
/** Sooner, when so many tags have come. */
const pruneAfterTags = 20_000;
const maxTags = 200_000;
const linksWithoutContentMs = 24 * 60 * 60_000;

/**
 * The content-addressed store on local disk: files named by their digest, catalogued in SQLite. Nothing is visible
 * before it is verified and on disk for good; what is leased is not evicted.
 */
export class BlobStore {
  readonly catalog: Catalog;
  readonly pins: Pins;
  readonly health: Health;
  readonly verifier: Verifier;
  readonly #root: string;
  readonly #context: StoreContext;
  readonly #evictor: Evictor;
  #unlock: () => void;
  /** The disk did not take anything at the start: the catalog is a copy in memory. */
  #isOnCopy: boolean;
  readonly #disk: WorkerThread;
  /** For what is done with the catalog: while writes wait for it, it is not to stand in line behind files. */
  readonly #catalogDisk: WorkerThread;
  readonly #buffers = new Buffers();
  readonly #writes = new Slots(maxWritesAtOnce);
  readonly #memory = new LRUCache<Digest, Held>({
    maxSize: memoryBytes,
    maxEntrySize: 4 * memoryEntryBytes,
    sizeCalculation: ({ bytes, children }) => bytes.length + entryBytes + children.length * childBytes,
  });
  /** On the way to disk: findable until the catalog has them. */
  readonly #settling = new Map<Digest, Held>();
  readonly #persisting = new Map<Digest, Promise<void>>();
  readonly #leases = new Map<Digest, SharedFile>();
  readonly #deleting = new Map<Digest, Promise<void>>();
  /** Going, or gone though the catalog could not be told: whatever it says, it is not here. */
  readonly #lost = new Set<Digest>();
  readonly #ingests = new Set<Ingest>();
  readonly #partials: Partials;
  readonly #quarantine: Quarantine;
  readonly #recheck: Recheck;
  /** A large catalog is being read through. */
  #checked: Promise<void> | undefined;
  /** Work that a close must wait for. */
  readonly #pending = new Set<Promise<unknown>>();
  readonly #timer: NodeJS.Timeout | undefined;
  readonly #logTimer: NodeJS.Timeout | undefined;
  readonly #closing = new AbortController();
  /** By the file system's clock, whatever the injected one says. */
  readonly #startedAt = Date.now();
  /** From then on a file that is missing has not been lost in a crash before the start. */
  #isReconciled = false;
  /** Whose files were missing before. */
  #lostBlobs = 0;
  #dirty = false;
  #prunedAt = -Infinity;
  #isWatching = false;
  #cutting: Promise<void> | undefined;
  #slimming: Promise<void> | undefined;
  #isShrinking = false;
  #shrunkAt = -Infinity;
  /** What the catalog's files may take beside the cap. */
  readonly #catalogShare: number;
  readonly #maxBytes: number;
  /** Of the catalog that is open. */
  #catalogInode: number | undefined;
  /** How often a file was opened or leased again. */
  #opened = 0;
  #turn: Promise<unknown> = Promise.resolve();
  /** Of the catalog, its log and its backup. */
  #otherBytes = 0;
  /** By the file system's clock. */
  #backedUpAt = 0;

  /** Throws when the directory cannot be used, is in use, or is a newer program's. */
  static async open(options: StoreOptions, context: StoreContext): Promise<BlobStore> {
    try {
      return await BlobStore.#open(options, context);
    } catch (error) {
      if (!isDiskTrouble(error) || options.upkeep === false) throw error;
      // What may go makes room, if it is room that is missing.
      await removeLeftovers(options.path);
      return await BlobStore.#open(options, context).catch((again: unknown) => {
        if (!isDiskTrouble(again)) throw again;
        return BlobStore.#onCopy(options, context, again);
      });
    }
  }

  /** On a disk that takes nothing: what is there is served, by a copy of the catalog in memory. */
  static #onCopy(options: StoreOptions, context: StoreContext, why: unknown): BlobStore {
    const parts = { lockedFile: undefined, unlock: () => undefined, inMemory: true };
    const store = new BlobStore(options, context, parts);
    store.health.failed(why);
    return store;
  }

  static async #open(options: StoreOptions, context: StoreContext): Promise<BlobStore> {
    await prepareDirectory(options.path);
    const unlock = lockDirectory(lockPath(options.path));
    try {
      await warnOfNetwork(options.path, context.log);
      await refuseToBeginAnew(options.path);
      const lockedFile = (await stat(lockPath(options.path))).ino;
      const store = new BlobStore(options, context, { lockedFile, unlock, inMemory: false });
      store.#catalogInode = await inodeOf(catalogPath(options.path));
      store.#backedUpAt = await stat(backupPath(options.path)).then(
        ({ mtimeMs }) => mtimeMs,
        () => 0,
      );
      const reserve = (): Reservation => store.#evictor.reservation();
      await Promise.all([store.#partials.load(reserve), store.#quarantine.load(reserve)]).catch(
        async (error: unknown) => {
          await store.close();
          throw error;
        },
      );
      if (options.upkeep !== false) {
        await warnOfRoom(options.path, options, store.bytes, context.log);
        store.#tidy();
      }
      return store;
    } catch (error) {
      unlock();
      throw explain(error, catalogPath(options.path));
    }
  }

  private constructor(
    options: StoreOptions,
    context: StoreContext,
    { lockedFile, unlock, inMemory }: StoreParts,
  ) {
    this.#root = options.path;
    this.#context = context;
    this.#unlock = unlock;
    this.#isOnCopy = inMemory;
    this.health = new Health(this.#root, lockedFile, context.log);
    this.catalog = new Catalog(catalogPath(this.#root), {
      inMemory,
      // Operators are told by what they do that it failed.
      ...(options.upkeep !== false && {
        onDamaged: (error: unknown) => this.health.catalogDamaged(error),
      }),
      onLostWrite: (error) =>
        context.log.warn({ err: error }, 'something could not be written to the catalog'),
      onTagMoved: (registry, repo, tag) => {
        this.pins.changed(registry, repo, tag);
        context.onTagChanged(registry, repo, tag);
      },
    });
    try {
      this.pins = new Pins(options, { ...context, catalog: this.catalog });
    } catch (error) {
      this.catalog.close();
      throw error;
    }
    const onDeath = (error: Error): void =>
      context.log.error({ err: error }, 'a worker thread has ended: it is started again');
    this.verifier = new Verifier(onDeath);
    this.#disk = new WorkerThread('disk-worker', import.meta.url, onDeath);
    this.#catalogDisk = new WorkerThread('disk-worker', import.meta.url, onDeath);
    this.#partials = new Partials(ingestPath(this.#root), { ...context, catalog: this.catalog });
    this.#quarantine = new Quarantine(quarantinePath(this.#root));
    this.#recheck = new Recheck({
      clock: context.clock,
      log: context.log,
      verifier: this.verifier,
      pathOf: (digest) => this.pathOf(digest),
      sizeOf: (digest) => this.#row(digest)?.size,
      isBusy: () => this.#ingests.size > 0 || this.#leases.size > 0,
      activity: () => this.#opened,
      onDamaged: (digest, why) => this.quarantine(digest, why),
    });
    const { pins } = this;
    // The getters are the evictor's; `this` in them is not the store.
    const otherBytes = (): number => this.#otherBytes;
    const catalogShare = Math.max(leastCatalogBytes, catalogShareOfCap * options.maxBytes);
    this.#catalogShare = catalogShare;
    this.#maxBytes = options.maxBytes;
    const partials = this.#partials;
    const quarantine = this.#quarantine;
    this.#evictor = new Evictor(
      options,
      {
        get partialBytes() {
          return partials.bytes + quarantine.bytes;
        },
        leastWorthy: (count, after) => this.catalog.uses.leastWorthy(count, after),
        idle: (count) => {
          const before = context.clock.now() - options.maxIdleMs;
          return this.catalog.uses.idleSince(before, count);
        },
        mayLeave: (digest) =>
          !this.catalog.connection.isDamaged && this.#mayLeave(digest) && !this.#wasJustUsed(digest),
        dropPartial: async () => (await quarantine.dropOldest()) || partials.dropOldest(),
        evict: (victim, reason) => this.#evict(victim, reason),
        get otherBytes() {
          return Math.max(0, otherBytes() - catalogShare);
        },
        get pinnedBytes() {
          return pins.bytes;
        },
        free: async () => {
          const { bavail, bsize, files, ffree } = await statfs(this.#root);
          return { bytes: bavail * bsize, files: files === 0 ? Infinity : ffree };
        },
      },
      this.catalog.blobs.footprint(),
    );
    if (options.upkeep !== false) {
      this.#timer = setInterval(() => this.#writeBehind(), writeBehindMs).unref();
      this.#logTimer = setInterval(() => {
        if (this.#isWatching) return;
        this.#isWatching = true;
        const watched = this.#watchCatalog().finally(() => (this.#isWatching = false));
        this.#behind(watched, 'looking after the catalog');
      }, watchMs).unref();
    }
    if (!inMemory && isLarge(catalogPath(this.#root)))
      this.#checked = this.#track(this.#check()).finally(() => (this.#checked = undefined));
    if (options.scrubEveryMs > 0)
      this.#behind(this.#scrubber(options.scrubEveryMs).run(this.#closing.signal), 'the scrub');
  }

  /** Bytes on disk, with what is set aside for what is arriving. */
  get bytes(): number {
    return this.#evictor.bytes;
  }

  /** Bytes on disk of unfinished fills, running or kept. */
  get pendingBytes(): number {
    let total = this.#partials.bytes;
    for (const ingest of this.#ingests) total += ingest.pendingBytes;
    return total;
  }

  describe(digest: Digest): Descriptor | undefined {
    return this.#held(digest) ?? this.#row(digest);
  }

  /** Whether there is something whose digest begins so. */
  holds(prefix: string): boolean {
    if (isDigest(prefix)) return this.describe(prefix) !== undefined;
    const known = [...this.#settling.keys(), ...this.catalog.blobs.withPrefix(prefix)];
    return known.some((digest) => digest.startsWith(prefix) && this.describe(digest) !== undefined);
  }

  /** The parts of a held manifest. */
  children(digest: Digest): readonly Child[] {
    return this.#held(digest)?.children ?? this.catalog.children.of(digest);
  }

  /** How large a manifest that is held says that the digest is. */
  sizeOfChild(digest: Digest): number | undefined {
    for (const { children } of this.#settling.values()) {
      const child = children.find((each) => each.digest === digest);
      if (child) return child.size;
    }
    return this.catalog.children.sizeOf(digest);
  }

  /** Synchronous on purpose: looks up and leases in one tick. */
  open(digest: Digest): Content | undefined {
    const held = this.#held(digest);
    if (held) {
      this.catalog.uses.add(digest, this.#context.clock.now());
      return new MemoryContent(held);
    }
    const row = this.#row(digest);
    if (!row) return undefined;
    this.catalog.uses.add(digest, this.#context.clock.now());
    const file = this.#lease(row);
    this.#opened += 1;
    if (row.size > memoryEntryBytes || (row.size > smallSize && row.mediaType === blobMediaType)) {
      return new StoredContent(row, file, this.#buffers);
    }
    return new SmallContent(row, file, (bytes) => this.#remember(row, bytes));
  }

  /** What was read and verified. Returns its media type: the catalog of an older version may have another one. */
  #remember(row: Descriptor, bytes: Buffer): string {
    const { digest } = row;
    const manifest = row.mediaType === blobMediaType ? undefined : recognise(bytes);
    const held = { ...row, children: this.catalog.children.of(digest), ...manifest, bytes };
    if (!this.catalog.blobs.get(digest)) return held.mediaType;
    const mayWrite = !this.catalog.connection.queue.isWaiting && !this.catalog.connection.isDamaged;
    if (held.mediaType !== row.mediaType && mayWrite)
      this.catalog.blobs.add(held, held.children, this.#context.clock.now());
    this.#memory.set(digest, held);
    return held.mediaType;
  }

  /** A client takes the whole of a stored blob: behind the answer it may be read again. */
  taken(digest: Digest, client: string): void {
    const file = this.#leases.get(digest);
    if (!file) return;
    this.#recheck.taken(digest, client, !file.wasTaken);
    file.wasTaken = true;
  }

  /** An unfinished fill from the registry has left something of the digest. */
  hasPartial(registry: string, digest: Digest): boolean {
    return this.#partials.has(registry, digest);
  }

  /**
   * A private, growing file, visible only by commit; it starts with what an earlier fill from the same registry has left.
   * `onReadersChanged`: a reader stands elsewhere, or has gone.
   */
  ingest(registry: string, digest: Digest, onReadersChanged: () => void = () => undefined): Ingest {
    const kept = this.#partials.take(registry, digest);
    const { path, reservation } = kept ?? {
      path: this.#newPath(digest),
      reservation: this.#evictor.reservation(),
    };
    const context = {
      verifier: this.verifier,
      buffers: this.#buffers,
      writes: this.#writes,
      reservation,
      now: () => this.#context.clock.monotonic(),
      journal: () => this.#partials.journal(ingest),
      sync: (fd: number): Promise<void> =>
        this.#disk.call('datasync', { fd, directory: ingestPath(this.#root) }),
      syncJournal: () => this.#checkpoint(),
      keep: () => this.#partials.keep(ingest),
      onTrouble: (error: unknown) => this.health.failed(error),
      discard: async () => {
        this.#partials.forget(ingest);
        await unlink(path).catch(() => undefined);
      },
      onReadersChanged,
      onClosed: () => this.#ingests.delete(ingest),
    };
    const ingest: Ingest = new Ingest({ registry, digest, path }, context, kept);
    this.#ingests.add(ingest);
    return ingest;
  }

  /** Makes a verified ingest part of the store. Rejects when the disk would not have it: then it has to `fail`. */
  async commit(ingest: Ingest, mediaType: string): Promise<void> {
    const { digest, size, path } = ingest;
    if (size === undefined) throw new Error(`commit of ${digest} before its size is known`);
    const isNew = await this.#publish(path, { digest, size, mediaType }, []).catch(async (cause: unknown) => {
      const fault = new MirrorError('store-full', `blob ${digest}: cannot be stored`, { cause });
      this.health.failed(cause);
      if (!this.catalog.connection.isDamaged) throw fault;
      // That is told already, and its readers have what they want.
      await ingest.fail(fault);
      return undefined;
    });
    if (isNew === undefined) return;
    if (isNew) ingest.reservation.keep(size);
    this.#partials.forget(ingest);
    ingest.committed();
  }

  /** Takes verified bytes. They can be opened at once; they go to disk behind the answer. */
  put(bytes: Buffer, { digest, mediaType, children }: Omit<Held, 'bytes' | 'size'>): Content {
    const held: Held = { digest, size: bytes.length, mediaType, bytes, children };
    this.#memory.set(digest, held);
    if (!this.#settling.has(digest)) {
      this.#settling.set(digest, held);
      const persisted = this.#persist(held)
        .catch((error: unknown) => {
          if (this.catalog.connection.isDamaged) return;
          if (!isFault(error, 'store-full')) this.health.failed(error);
          this.#context.log.warn({ err: error, digest }, 'content is not kept: it could not be written');
        })
        .finally(() => {
          this.#settling.delete(digest);
          this.#persisting.delete(digest);
        });
      this.#persisting.set(digest, persisted);
      void this.#track(persisted);
    }
    return new MemoryContent(held);
  }

  /** Resolves when what was put is on disk, or could not be written. */
  async settled(digest: Digest): Promise<void> {
    await this.#persisting.get(digest);
  }

  pathOf(digest: Digest): string {
    return blobPath(this.#root, digest);
  }

  /** Takes what was found wrong out of the store, and tells of it. */
  async quarantine(digest: Digest, why: string): Promise<void> {
    const row = this.catalog.blobs.get(digest);
    if (!row) return;
    const { log, onDamaged } = this.#context;
    const pinnedFor = this.#pinnedFor(digest);
    if (why === missingFile && !this.#isReconciled) {
      this.#lostBlobs += 1;
      // A crash comes between the end of a file and that of its row. What is pinned does not go by itself.
      if (!pinnedFor) {
        await this.#delete(row);
        return;
      }
    }
    log.error({ digest, size: row.size, why }, 'a stored blob is damaged: it will be fetched again');
    await this.#delete(row, async (path) => {
      try {
        await this.#quarantine.take(path, () => this.#evictor.reservation());
      } catch {
        await unlink(path);
      }
    });
    onDamaged({ digest, mediaType: row.mediaType, pinnedFor });
  }

  #pinnedFor(digest: Digest): Damaged['pinnedFor'] {
    try {
      return this.catalog.pins.isPinned(digest) ? this.catalog.links.reposOf(digest)[0] : undefined;
    } catch {
      // Damage must go, whatever else is wrong.
      return undefined;
    }
  }

  /** Puts blobs out, except what is in use or pinned. Resolves to those that went. */
  async remove(digests: Iterable<Digest>): Promise<Digest[]> {
    const removed: Digest[] = [];
    for (const digest of digests) {
      const row = this.#row(digest);
      if (!row || !this.#mayLeave(digest)) continue;
      if (await this.#delete(row)) removed.push(digest);
    }
    return removed;
  }

  /**
   * Takes over a file from elsewhere. `bring` puts it at a path of ours, once there is room for it, verifies it, and says what
   * it is.
   */
  adopt(
    digest: Digest,
    size: number,
    bring: (path: string) => Promise<{ mediaType: string; children: readonly Child[] }>,
  ): Promise<void> {
    const work = async (): Promise<void> => {
      this.#closing.signal.throwIfAborted();
      const reservation = this.#evictor.reservation();
      const path = this.#newPath(digest);
      try {
        await reservation.growTo(size);
        const { mediaType, children } = await bring(path);
        if (await this.#publish(path, { digest, size, mediaType }, children)) reservation.keep(size);
      } finally {
        await unlink(path).catch(() => undefined);
        reservation.release();
      }
    };
    return this.#track(work());
  }

  /** Mends what a crash has left behind; `signal` ends it early. */
  async reconcile(signal: AbortSignal): Promise<{ strayFiles: number; lostBlobs: number }> {
    const known = <T>(found: T): T => {
      // What a damaged catalog does not know is not stray.
      this.catalog.connection.expectUndamaged();
      return found;
    };
    const store = {
      digestsWithPrefix: (prefix: string) => known(this.catalog.blobs.withPrefix(prefix)),
      describe: (digest: Digest) => known(this.describe(digest)),
      open: (digest: Digest) => this.open(digest),
    };
    try {
      await this.#checked;
      // A copy may be older than the files: what it does not know is not stray.
      if (this.#isCatalogFrozen) return { strayFiles: 0, lostBlobs: 0 };
      const work = reconcile(blobsPath(this.#root), store, this.#startedAt, signal);
      const strayFiles = await this.#track(work);
      return { strayFiles, lostBlobs: this.#lostBlobs };
    } catch (error) {
      if (this.catalog.connection.isDamaged) return { strayFiles: 0, lostBlobs: this.#lostBlobs };
      throw error;
    } finally {
      this.#isReconciled = true;
    }
  }

  /** Reads the whole catalog. */
  async #check(): Promise<void> {
    const { signal } = this.#closing;
    await this.#apart('check', { file: catalogPath(this.#root) }, signal).catch((error: unknown) => {
      if (!this.catalog.connection.isDamaged && !signal.aborted)
        this.#context.log.warn({ err: error }, 'the catalog could not be checked for damage');
    });
  }

  /** What takes long, on a thread of its own, so that nothing waits for it; `signal` ends it early. */
  async #apart(method: 'check' | 'backup', files: object, signal?: AbortSignal): Promise<void> {
    const thread = new WorkerThread('disk-worker', import.meta.url);
    const end = (): void => void thread.close();
    signal?.addEventListener('abort', end);
    try {
      await thread.call(method, files).catch((error: unknown) => this.#sorted(error));
    } finally {
      signal?.removeEventListener('abort', end);
      await thread.close();
    }
  }

  /** What went wrong with the catalog in a worker thread: damage is noted. */
  #sorted(error: unknown): never {
    if (isCorrupt(error)) this.catalog.connection.damaged(error);
    throw error;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    clearInterval(this.#logTimer);
    this.#closing.abort();
    // Another program may have the catalog locked for longer than anybody waits.
    const locked = setInterval(() => this.catalog.connection.queue.giveUp(), lockedAtCloseMs).unref();
    await this.pins.close();
    await this.#recheck.close();
    while (this.#pending.size > 0) await Promise.allSettled(this.#pending);
    clearInterval(locked);
    await this.#flushAllUses();
    await this.#checkpoint();
    this.catalog.close();
    await Promise.all([this.verifier.close(), this.#disk.close(), this.#catalogDisk.close()]);
    this.#unlock();
  }

  /** Nothing is written to the catalog's file: it is damaged, or the disk takes nothing and a copy is used. */
  get #isCatalogFrozen(): boolean {
    return this.#isOnCopy || this.catalog.connection.isDamaged;
  }

  #scrubber(everyMs: number): Scrubber {
    return new Scrubber(everyMs, {
      blobsAfter: (digest, count) => this.catalog.blobs.after(digest, count),
      storedBytes: () => this.bytes,
      pathOf: (digest) => this.pathOf(digest),
      verifier: this.verifier,
      isBusy: () => this.#ingests.size > 0 || this.#leases.size > 0,
      onDamaged: (digest, why) => this.quarantine(digest, why),
      load: () => this.catalog.notes.get('scrub'),
      save: (position) => this.catalog.notes.set('scrub', position),
      now: () => this.#context.clock.now(),
      log: this.#context.log,
    });
  }

  /** Of a file that nobody can see yet. */
  #newPath(digest: Digest): string {
    return join(ingestPath(this.#root), `${hexOf(digest).slice(0, 16)}-${randomBytes(4).toString('hex')}`);
  }

  #row(digest: Digest): Descriptor | undefined {
    return this.#lost.has(digest) ? undefined : this.catalog.blobs.get(digest);
  }

  #held(digest: Digest): Held | undefined {
    return this.#memory.get(digest) ?? this.#settling.get(digest);
  }

  #lease(row: Descriptor): SharedFile {
    const { digest } = row;
    const shared = this.#leases.get(digest);
    if (shared) return shared.enter();
    const file = new SharedFile(row, this.pathOf(digest), {
      onIdle: () => this.#endLease(digest, file),
      // Later leases must not share the file that was found wanting.
      onDamaged: (why) => {
        // What it was replaced by since may be all right.
        if (this.#leases.get(digest) === file) this.#damaged(row, why);
      },
    });
    this.#leases.set(digest, file);
    return file;
  }

  #endLease(digest: Digest, file: SharedFile): void {
    if (this.#leases.get(digest) === file) this.#leases.delete(digest);
  }

  /** Asked in the tick in which it is to go. */
  #mayLeave(digest: Digest): boolean {
    return this.#row(digest) !== undefined && !this.#isLeased(digest) && !this.catalog.pins.isPinned(digest);
  }

  /** What it was chosen by is older than that: it has its place by now, and something else is to go. */
  #wasJustUsed(digest: Digest): boolean {
    try {
      return this.catalog.uses.flushOne(digest);
    } catch (error) {
      this.#context.log.debug({ err: error, digest }, 'a use could not be written');
      return true;
    }
  }

  async #evict(victim: Victim, reason: EvictionReason): Promise<boolean> {
    const isGone = await this.#delete(victim);
    if (!isGone) return false;
    this.#context.onEvicted(reason);
    if (reason !== 'idle') this.catalog.uses.evicted(victim);
    return true;
  }

  #isLeased(digest: Digest): boolean {
    if (this.#leases.has(digest)) return true;
    for (const ingest of this.#ingests) if (ingest.digest === digest) return true;
    return false;
  }

  async #persist(held: Held): Promise<void> {
    const { digest, size, bytes } = held;
    const row = this.#row(digest);
    if (row) {
      const add = (): boolean => this.catalog.blobs.add(held, held.children, this.#context.clock.now());
      await this.catalog.connection.queue.write(add);
      return;
    }
    const reservation = this.#evictor.reservation();
    const path = this.#newPath(digest);
    try {
      await reservation.growTo(size);
      await writeFile(path, bytes, { flag: 'wx' });
      if (await this.#publish(path, held, held.children)) reservation.keep(size);
    } catch (error) {
      await unlink(path).catch(() => undefined);
      throw error;
    } finally {
      reservation.release();
    }
  }

  /**
   * datasync, rename, sync of the directory, row: in this order, so that a crash leaves nothing that is not whole. Resolves
   * to whether the blob is new in the store.
   */
  #publish(path: string, descriptor: Descriptor, children: readonly Child[]): Promise<boolean> {
    const { digest } = descriptor;
    const work = async (): Promise<boolean> => {
      await this.#deleting.get(digest);
      this.catalog.connection.expectUndamaged();
      try {
        await this.#disk.call('publish', { from: path, to: this.pathOf(digest) });
        this.#dirty = true;
        if (children.length > manyChildren) await this.#inTurn(children.length);
        let wasLost = false;
        const isNew = await this.catalog.connection.queue.write(() => {
          const isNew = this.catalog.blobs.add(descriptor, children, this.#context.clock.now());
          // A row that could not be removed has its blob again.
          if (this.#lost.delete(digest)) wasLost = true;
          this.pins.stored(digest);
          return isNew;
        });
        return isNew || wasLost;
      } catch (error) {
        // Without a row the file would be on nobody's account.
        if (!this.catalog.connection.isDamaged && !this.catalog.blobs.get(digest))
          await unlink(this.pathOf(digest)).catch(() => undefined);
        throw error;
      }
    };
    return this.#track(work());
  }

  /** Large manifests are written one at a time, and others are answered in between; the catalog has room for them first. */
  async #inTurn(children: number): Promise<void> {
    const before = this.#turn;
    const prepare = async (): Promise<void> => {
      await before;
      await this.#slim(children * childRowBytes);
      await this.#paceLog();
    };
    const prepared = prepare();
    this.#turn = prepared
      .catch(() => undefined)
      .then(() => nextTurn())
      .then(() => nextTurn());
    await prepared;
  }

  /**
   * Keeps the catalog to its share, with room for `bytes` more: manifests of very many parts go, those first that nobody has
   * asked for longest.
   */
  #slim(bytes: number): Promise<void> {
    const before = this.#slimming;
    const slimming = (async (): Promise<void> => {
      await before;
      const limit = this.#catalogShare * catalogShareOfFiles - bytes;
      let last: WideManifest | undefined;
      const isOver = (): boolean => {
        const size = this.catalog.connection.size();
        return size.bytes - size.free > limit;
      };
      while (!this.#closing.signal.aborted && isOver()) {
        const found = this.catalog.uses.wideManifests(lookedAtOnce, last);
        if (found.length === 0) return;
        for (const victim of found) {
          last = victim;
          const { digest } = victim;
          if (!this.catalog.children.hasMoreThan(digest, veryManyChildren)) continue;
          if (!this.#mayLeave(digest) || this.#wasJustUsed(digest)) continue;
          await this.#evict(victim, 'max-bytes');
          if (!isOver()) return;
        }
        await nextTurn();
      }
    })();
    const done = slimming.finally(() => {
      if (this.#slimming === done) this.#slimming = undefined;
    });
    this.#slimming = done;
    return done;
  }

  /** Gives free pages of the catalog back to the file system, some at a time. */
  async #shrink(): Promise<void> {
    if (this.#isShrinking || this.#isOnCopy || this.health.trouble !== undefined) return;
    const { bytes, free } = this.catalog.connection.size();
    const most = Math.max(leastFreeBytes, Math.min(mostFreeBytes, this.#catalogShare / 8), bytes / 4);
    if (free <= most || performance.now() - this.#shrunkAt < shrinkAgainMs) return;
    this.#isShrinking = true;
    try {
      const { bavail, bsize } = await statfs(this.#root);
      if (bavail * bsize < shrinkRoomBytes + 2 * (bytes - free)) return;
      const file = catalogPath(this.#root);
      for (let left = Infinity; left > 0 && !this.#closing.signal.aborted;) {
        const now = await this.catalog.connection.queue.during(() =>
          this.#catalogDisk.call<number>('shrink', { file, pages: shrinkPages }),
        );
        await this.#paceLog();
        await nextTurn();
        if (now >= left) break;
        left = now;
      }
      await this.#cutLog();
    } catch (error) {
      this.#shrunkAt = performance.now();
      this.#context.log.warn({ err: error }, 'the catalog could not be made smaller');
    } finally {
      this.#isShrinking = false;
    }
  }

  /** From this tick on nobody finds the blob; its file goes, and then its row. Resolves to whether it could be done. */
  #delete(
    { digest, size }: Pick<Descriptor, 'digest' | 'size'>,
    dispose: (path: string) => Promise<void> = unlink,
  ): Promise<boolean> {
    if (!this.#row(digest)) return Promise.resolve(false);
    this.#lost.add(digest);
    try {
      // Now: it may be fetched again, and linked, before it is gone.
      this.catalog.links.removeAllTo(digest);
    } catch (error) {
      this.#context.log.warn({ err: error, digest }, 'the links of a blob could not be removed');
    }
    // Who leases it from now on gets what is stored from now on.
    this.#leases.delete(digest);
    this.#memory.delete(digest);
    this.#dirty = true;
    const work = async (): Promise<boolean> => {
      try {
        await dispose(this.pathOf(digest));
      } catch (error) {
        if (errorCode(error) !== 'ENOENT') {
          // Where nothing can be deleted it is still there.
          this.#lost.delete(digest);
          this.health.failed(error);
          return false;
        }
      }
      try {
        let isMore = await this.catalog.connection.queue.write(() => this.catalog.blobs.remove(digest));
        this.#lost.delete(digest);
        while (isMore) {
          await this.#paceLog();
          await nextTurn();
          isMore = await this.catalog.connection.queue.write(() =>
            this.catalog.blobs.removeMoreChildren(digest),
          );
        }
      } catch (error) {
        if (!this.catalog.connection.isDamaged)
          this.#context.log.warn({ err: error, digest }, 'the catalog could not forget a blob');
      }
      this.#evictor.removed(size);
      return true;
    };
    const done = work();
    const deleting = done.then(() => {
      if (this.#deleting.get(digest) === deleting) this.#deleting.delete(digest);
    });
    this.#deleting.set(digest, deleting);
    return this.#track(done);
  }

  #damaged({ digest }: Descriptor, why: string): void {
    this.#behind(this.quarantine(digest, why), 'taking out a damaged blob');
  }

  /** Work that nobody waits for: what goes wrong with it is in the log. */
  #behind(work: Promise<unknown>, what: string): void {
    this.#track(work).catch((error: unknown) => {
      if (this.#closing.signal.aborted || (this.catalog.connection.isDamaged && isCorrupt(error))) return;
      this.#context.log.error({ err: error }, `${what} failed`);
    });
  }

  #track<T>(work: Promise<T>): Promise<T> {
    this.#pending.add(work);
    const done = (): void => void this.#pending.delete(work);
    work.then(done, done);
    return work;
  }

  /** Returns whether there are more to write down. */
  #flushUses(): boolean {
    try {
      return this.catalog.uses.flush();
    } catch (error) {
      this.#context.log.warn({ err: error }, 'use-times could not be written');
      return false;
    }
  }

  #writeBehind(): void {
    this.#behind(this.#flushAllUses(), 'writing use-times');
    this.#behind(this.#partials.sweep(), 'sweeping what unfinished fills have left');
    this.#tidy();
    this.#behind(this.#lookAfterDirectory(), 'looking after the data directory');
    if (this.#dirty) this.#behind(this.#checkpoint(), 'the checkpoint');
    this.#pruneSometimes();
    const now = Date.now();
    if (!this.#isCatalogFrozen && now - this.#backedUpAt >= backupEveryMs) {
      this.#backedUpAt = now;
      this.#behind(this.#backup(), 'the backup');
    }
  }

  #pruneSometimes(): void {
    if (this.#isCatalogFrozen) return;
    const { clock } = this.#context;
    const at = clock.monotonic();
    if (at - this.#prunedAt < pruneEveryMs && this.catalog.tags.moved < pruneAfterTags) return;
    this.#prunedAt = at;
    this.catalog.tags.moved = 0;
    this.#behind(this.#prune(clock.now()), 'pruning the catalog');
  }

  async #prune(now: number): Promise<void> {
    const { log, onPruned } = this.#context;
    const file = catalogPath(this.#root);
    const what = { file, maxTags, linksBefore: now - linksWithoutContentMs } satisfies Prune;
    const pruned = await this.#catalogDisk
      .call<Pruned>('prune', what)
      .catch((error: unknown) => this.#sorted(error));
    for (const table of ['links', 'tags'] as const) if (pruned[table] > 0) onPruned(table, pruned[table]);
    if (pruned.links + pruned.tags > 0) log.info(pruned, 'rows of the catalog were pruned');
  }

  /** Why what is pulled cannot be stored; undefined: it can. */
  get trouble(): string | undefined {
    const isShort = 'the file system has less free space than store.minFreeBytes';
    return this.health.trouble ?? (this.#evictor.isShort ? isShort : undefined);
  }

  #tidy(): void {
    // Nothing goes for want of room on a disk that takes nothing.
    if (this.health.trouble !== undefined) return;
    const tidied = this.#evictor.tidy(this.#closing.signal).catch((error: unknown) => {
      // Who needs room says it louder.
      this.#context.log.debug({ err: error }, 'room could not be made ahead');
    });
    this.#behind(tidied, 'making room ahead');
  }

  async #flushAllUses(): Promise<void> {
    while (this.#flushUses()) await nextTurn();
  }

  async #backup(): Promise<void> {
    const files = { file: catalogPath(this.#root), to: backupPath(this.#root) };
    await this.#apart('backup', files).catch((error: unknown) => {
      if (!this.catalog.connection.isDamaged)
        this.#context.log.warn({ err: error }, 'the catalog could not be backed up');
    });
  }

  /** What the log holds goes into the catalog; a log that has grown is cut, in a moment in which nothing is written. */
  async #checkpoint(): Promise<void> {
    this.#dirty = false;
    if (this.#isCatalogFrozen) return;
    const file = catalogPath(this.#root);
    try {
      // While much is written, only more would come meanwhile.
      if ((await sizeOf(walPath(this.#root))) < longLogBytes)
        await this.#catalogDisk.call('checkpoint', { file });
      if (!this.#checked && (await sizeOf(walPath(this.#root))) >= cutLogBytes) await this.#cutLog();
    } catch (error) {
      if (isCorrupt(error)) this.catalog.connection.damaged(error);
      else this.#context.log.warn({ err: error }, 'the catalog could not be checkpointed');
    }
  }

  /** A catalog whose file was deleted while it is open is written anew: the next start would know of nothing. */
  async #lookAfterDirectory(): Promise<void> {
    await this.health.probe();
    const file = catalogPath(this.#root);
    if (this.#isOnCopy) {
      await this.#leaveCopy(file);
      return;
    }
    const ino = await inodeOf(file);
    if (ino === this.#catalogInode || this.health.isGone || this.health.trouble !== undefined) return;
    this.#context.log.error(
      { file },
      'the catalog was deleted while it was in use: it is written anew from what is known',
    );
    await this.#catalogDisk.call('forget', { file });
    await this.catalog.connection.rescue(file);
    this.#catalogInode = await inodeOf(file);
    this.#dirty = true;
  }

  /** The disk takes what is written again: from now on the catalog is the file. */
  async #leaveCopy(file: string): Promise<void> {
    if (this.health.trouble !== undefined) return;
    let unlock: (() => void) | undefined;
    try {
      await prepareDirectory(this.#root);
      unlock = lockDirectory(lockPath(this.#root));
      this.catalog.connection.openFile(file);
    } catch (error) {
      unlock?.();
      this.health.failed(error);
      return;
    }
    this.#unlock = unlock;
    this.#isOnCopy = false;
    this.health.lockedFile = await inodeOf(lockPath(this.#root));
    this.#catalogInode = await inodeOf(file);
    const reserve = (): Reservation => this.#evictor.reservation();
    await Promise.all([this.#partials.load(reserve), this.#quarantine.load(reserve)]);
    this.#context.log.info('the store is used again');
  }

  async #cutLog(): Promise<void> {
    const file = catalogPath(this.#root);
    await this.catalog.connection.queue.during(() => this.#catalogDisk.call('truncate', { file }));
  }

  /** Whoever writes much waits until a log that has grown is cut. */
  async #paceLog(): Promise<void> {
    if ((await sizeOf(walPath(this.#root))) < cutLogBytes) return;
    this.#cutting ??= this.#checkpoint().finally(() => (this.#cutting = undefined));
    await this.#cutting;
  }

  /** The log may grow faster than it is looked after, and the catalog too. */
  async #watchCatalog(): Promise<void> {
    const backup = backupPath(this.#root);
    const files = [catalogPath(this.#root), backup, `${backup}.new`, walPath(this.#root)];
    const sizes = await Promise.all(files.map(sizeOf));
    this.#otherBytes = sizes.reduce((sum, size) => sum + size, 0);
    await this.#paceLog();
    if (this.#isOnCopy || this.health.trouble !== undefined) return;
    if (!this.#slimming) this.#behind(this.#slim(0), 'making room in the catalog');
    this.#behind(this.#shrink(), 'making the catalog smaller');
    const isOver = this.bytes + this.#otherBytes > this.#maxBytes + this.#catalogShare;
    if (isOver) this.#tidy();
    // A backup of what was much larger.
    const [size = 0, backupSize = 0] = sizes;
    if (backupSize > 2 * size + leastCatalogBytes / 4) await this.#backup();
  }
}

async function sizeOf(file: string): Promise<number> {
  return stat(file).then(
    ({ size }) => size,
    () => 0,
  );
}

/** Undefined: there is no such file. */
async function inodeOf(file: string): Promise<number | undefined> {
  return stat(file).then(
    ({ ino }) => ino,
    () => undefined,
  );
}
