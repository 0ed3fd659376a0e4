import { unlink, writeFile } from 'node:fs/promises';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { Child } from '../oci/manifest.ts';
import { isFault, MirrorError } from '../util/errors.ts';
import type { WorkerThread } from '../util/worker.ts';
import type { Catalog } from './catalog/catalog.ts';
import type { StoreContext } from './context.ts';
import type { Deletion } from './deletion.ts';
import type { Health } from './disk/health.ts';
import { blobPath } from './disk/layout.ts';
import type { Ingest } from './ingest/ingest.ts';
import type { Ingests } from './ingest/ingests.ts';
import type { Held } from './reading/stored-content.ts';
import type { Evictor } from './room/evictor.ts';
import type { Pins } from './room/pins.ts';
import type { Background } from './upkeep/background.ts';
import type { CatalogLog } from './upkeep/catalog-log.ts';
import type { CatalogSize } from './upkeep/catalog-size.ts';

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
  /** Waits for the disk. */
  readonly worker: WorkerThread;
  readonly context: StoreContext;
}

/** Writing so many rows takes some milliseconds. */
const manyChildren = 500;

/** How what is verified becomes part of the store. */
export class Publishing {
  readonly #parts: PublishingParts;
  readonly #catalog: Catalog;
  /** Of the large manifests: resolves when the next may be written. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(parts: PublishingParts) {
    this.#parts = parts;
    this.#catalog = parts.catalog;
  }

  /** A verified ingest. Rejects when the disk would not have it: then it has to `fail`. */
  async commit(ingest: Ingest, mediaType: string): Promise<void> {
    const { health, ingests } = this.#parts;
    const { digest, size, path } = ingest;
    if (size === undefined) throw new Error(`commit of ${digest} before its size is known`);
    const isNew = await this.#publish(path, { digest, size, mediaType }, []).catch(async (cause: unknown) => {
      const fault = new MirrorError('store-full', `blob ${digest}: cannot be stored`, { cause });
      health.failed(cause);
      if (!this.#catalog.connection.isDamaged) throw fault;
      // That is told already, and its readers have what they want.
      await ingest.fail(fault);
      return undefined;
    });
    if (isNew === undefined) return;
    if (isNew) ingest.reservation.keep(size);
    ingests.partials.forget(ingest);
    ingest.committed();
  }

  /** What is in memory. Never rejects: what cannot be written is not kept. */
  async persist(held: Held): Promise<void> {
    const { digest } = held;
    const { health, context } = this.#parts;
    try {
      await this.#persist(held);
    } catch (error) {
      if (this.#catalog.connection.isDamaged) return;
      if (!isFault(error, 'store-full')) health.failed(error);
      context.log.warn({ err: error, digest }, 'content is not kept: it could not be written');
    }
  }

  /**
   * A file from elsewhere. `bring` puts it at a path of ours, once there is room for it, verifies it, and says what it is.
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
        if (await this.#publish(path, { digest, size, mediaType }, children)) reservation.keep(size);
      } finally {
        await unlink(path).catch(() => undefined);
        reservation.release();
      }
    };
    return background.track(work());
  }

  async #persist(held: Held): Promise<void> {
    const { digest, size, bytes } = held;
    const { deletion, ingests, evictor, context } = this.#parts;
    if (deletion.stored(digest)) {
      const add = (): boolean => this.#catalog.blobs.add(held, held.children, context.clock.now());
      await this.#catalog.connection.queue.write(add);
      return;
    }
    const reservation = evictor.reservation();
    const path = ingests.newPath(digest);
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
    const { root, background, catalogLog, deletion, pins, worker, context } = this.#parts;
    const work = async (): Promise<boolean> => {
      await deletion.gone(digest);
      this.#catalog.connection.expectUndamaged();
      const to = blobPath(root, digest);
      try {
        await worker.call('publish', { from: path, to });
        catalogLog.isDirty = true;
        if (children.length > manyChildren) await this.#inTurn(children.length);
        let wasLost = false;
        const isNew = await this.#catalog.connection.queue.write(() => {
          const isNew = this.#catalog.blobs.add(descriptor, children, context.clock.now());
          if (deletion.restored(digest)) wasLost = true;
          pins.stored(digest);
          return isNew;
        });
        return isNew || wasLost;
      } catch (error) {
        // Without a row the file would be on nobody's account.
        if (!this.#catalog.connection.isDamaged && !this.#catalog.blobs.get(digest))
          await unlink(to).catch(() => undefined);
        throw error;
      }
    };
    return background.track(work());
  }

  /** Large manifests are written one at a time, and others are answered in between; the catalog has room for them first. */
  async #inTurn(children: number): Promise<void> {
    const { catalogLog, catalogSize } = this.#parts;
    const before = this.#turn;
    const prepare = async (): Promise<void> => {
      await before;
      await catalogSize.makeRoom(children);
      await catalogLog.pace();
    };
    const prepared = prepare();
    this.#turn = prepared
      .catch(() => undefined)
      .then(() => nextTurn())
      .then(() => nextTurn());
    await prepared;
  }
}
