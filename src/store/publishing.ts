import { unlink, writeFile } from 'node:fs/promises';
import type { Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { Child } from '../oci/manifest.ts';
import { isFault, MirrorError } from '../util/errors.ts';
import { Slots } from '../util/slots.ts';
import type { WorkerThread } from '../util/worker.ts';
import type { Catalog } from './catalog/catalog.ts';
import type { StoreContext } from './context.ts';
import type { Deletion } from './deletion.ts';
import type { Health } from './disk/health.ts';
import { blobPath } from './disk/layout.ts';
import type { Ingest } from './ingest/ingest.ts';
import type { Ingests } from './ingest/ingests.ts';
import { memoryOf } from './memory.ts';
import type { BufferedBlob } from './reading/stored-content.ts';
import type { Evictor } from './room/evictor.ts';
import type { Pins } from './room/pins.ts';
import type { Background } from './upkeep/background.ts';
import type { CatalogLog } from './upkeep/catalog-log.ts';
import { manyChildren, type CatalogSize } from './upkeep/catalog-size.ts';

export interface PublishingParts {
  /** The data directory. */
  readonly root: string;
  readonly background: Background;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly catalogSize: CatalogSize;
  readonly deletion: Deletion;
  readonly evictor: Evictor;
  readonly health: Health;
  readonly ingests: Ingests;
  readonly pins: Pins;
  /** For blocking disk access. */
  readonly worker: WorkerThread;
  readonly context: StoreContext;
}

/** Manifests written concurrently. The others wait in memory instead of as files that take up space. */
const maxConcurrentManifests = 16;
/** Limit for manifests waiting in memory; beyond it manifests are not stored. */
const maxWaitingBytes = 32 * 1024 * 1024;

/** Moves verified content into the store. */
export class Publishing {
  readonly #parts: PublishingParts;
  readonly #catalog: Catalog;
  readonly #manifests = new Slots(maxConcurrentManifests);
  #waitingBytes = 0;

  constructor(parts: PublishingParts) {
    this.#parts = parts;
    this.#catalog = parts.catalog;
  }

  /** Publishes a verified ingest. Rejects when it cannot be stored: then call `fail`. */
  async commit(ingest: Ingest, mediaType: string): Promise<void> {
    const { health, ingests } = this.#parts;
    const { digest, size, path } = ingest;
    if (size === undefined) throw new Error(`commit of ${digest} before its size is known`);
    const isNew = await this.#publish(path, { digest, size, mediaType }, []).catch(async (cause: unknown) => {
      const fault = new MirrorError('store-full', `blob ${digest}: cannot be stored`, { cause });
      health.failed(cause);
      if (!this.#catalog.connection.isDamaged) throw fault;
      // Damage is reported already, and readers of verified bytes are not affected.
      await ingest.fail(fault);
      return undefined;
    });
    if (isNew === undefined) return;
    if (isNew) ingest.reservation.commit(size);
    ingests.partials.forget(ingest);
    ingest.committed();
  }

  /** Writes a blob from memory. Never rejects: failures are logged. */
  async persist(blob: BufferedBlob): Promise<void> {
    const { digest } = blob;
    const { health, context } = this.#parts;
    try {
      await (blob.children.length > 0 ? this.#persistManifest(blob) : this.#persist(blob));
    } catch (error) {
      const { signal } = this.#parts.background;
      if (this.#catalog.connection.isDamaged || (signal.aborted && error === signal.reason)) return;
      if (!isFault(error, 'store-full')) health.failed(error);
      context.log.warn({ err: error, digest }, 'content is not stored: it could not be written');
    }
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
    const { background, ingests, evictor } = this.#parts;
    const work = async (): Promise<void> => {
      background.signal.throwIfAborted();
      const reservation = evictor.reservation();
      const path = ingests.newPath(digest);
      try {
        await reservation.growTo(size);
        const { mediaType, children } = await bring(path);
        if (await this.#publish(path, { digest, size, mediaType }, children)) reservation.commit(size);
      } finally {
        await unlink(path).catch(() => undefined);
        reservation.release();
      }
    };
    return background.track(work());
  }

  /** Waits for a slot. Wide manifests that still wait when the store closes are not stored. */
  async #persistManifest(blob: BufferedBlob): Promise<void> {
    const bytes = memoryOf(blob);
    if (this.#waitingBytes > 0 && this.#waitingBytes + bytes > maxWaitingBytes)
      throw new MirrorError('store-full', 'too many manifests wait to be written');
    this.#waitingBytes += bytes;
    const isWide = blob.children.length > manyChildren;
    const { signal } = this.#parts.background;
    try {
      const done = await this.#manifests.take(isWide ? signal : undefined);
      await this.#persist(blob).finally(done);
    } finally {
      this.#waitingBytes -= bytes;
    }
  }

  async #persist(blob: BufferedBlob): Promise<void> {
    const { digest, size, bytes } = blob;
    const { deletion, ingests, evictor, context } = this.#parts;
    if (deletion.stored(digest)) {
      const add = (): boolean => this.#catalog.blobs.add(blob, blob.children, context.clock.now());
      await this.#write(add, blob.children.length);
      return;
    }
    const reservation = evictor.reservation();
    const path = ingests.newPath(digest);
    try {
      await reservation.growTo(size);
      await writeFile(path, bytes, { flag: 'wx' });
      if (await this.#publish(path, blob, blob.children)) reservation.commit(size);
    } catch (error) {
      await unlink(path).catch(() => undefined);
      throw error;
    } finally {
      reservation.release();
    }
  }

  /**
   * Order: fdatasync, rename, fsync of the directory, catalog row; so a crash leaves no incomplete blob. Resolves to
   * whether the blob is new.
   */
  #publish(path: string, descriptor: Descriptor, children: readonly Child[]): Promise<boolean> {
    const { digest } = descriptor;
    const { root, background, catalogLog, deletion, pins, worker, context } = this.#parts;
    const work = async (): Promise<boolean> => {
      await deletion.deletionOf(digest);
      this.#catalog.connection.expectUndamaged();
      const to = blobPath(root, digest);
      try {
        await worker.call('publish', { from: path, to });
        catalogLog.isDirty = true;
        let wasHidden = false;
        const add = (): boolean => {
          const isNew = this.#catalog.blobs.add(descriptor, children, context.clock.now());
          if (deletion.markRestored(digest)) wasHidden = true;
          pins.onStored(digest);
          return isNew;
        };
        return (await this.#write(add, children.length)) || wasHidden;
      } catch (error) {
        // A file without a row would not be counted.
        if (!this.#catalog.connection.isDamaged && !this.#catalog.blobs.get(digest))
          await unlink(to).catch(() => undefined);
        throw error;
      }
    };
    return background.track(work());
  }

  /** Each child is a row: manifests wait until the log is short, wide ones also for room in the catalog. */
  #write(add: () => boolean, children: number): Promise<boolean> {
    const { catalogLog, catalogSize } = this.#parts;
    if (children === 0) return this.#catalog.connection.queue.write(add);
    const makeRoom = (): Promise<void> => catalogSize.makeRoom(children);
    return catalogLog.write(add, children > manyChildren ? makeRoom : undefined);
  }
}
