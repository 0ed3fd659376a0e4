import { unlink } from 'node:fs/promises';
import { setImmediate as yieldToEventLoop } from 'node:timers/promises';
import type { Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { errorCode } from '../util/errors.ts';
import type { Catalog } from './catalog/catalog.ts';
import type { Victim } from './catalog/tables/uses.ts';
import type { StoreContext } from './context.ts';
import type { Health } from './disk/health.ts';
import { blobPath } from './disk/layout.ts';
import type { Ingests } from './ingest/ingests.ts';
import type { Leases } from './leases.ts';
import type { Memory } from './memory.ts';
import type { EvictionReason, Victims } from './room/evictor.ts';
import type { Pins } from './room/pins.ts';
import type { Space } from './room/space.ts';
import type { Background } from './upkeep/background.ts';
import type { CatalogLog } from './upkeep/catalog-log.ts';

export interface DeletionParts {
  /** The data directory. */
  readonly root: string;
  readonly background: Background;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly health: Health;
  readonly ingests: Ingests;
  readonly leases: Leases;
  readonly memory: Memory;
  readonly pins: Pins;
  readonly space: Space;
  readonly context: StoreContext;
}

/** Deleting more child rows writes some hundred kilobytes to the log. */
const manyRows = 50;

/** Deletes blobs: what is evictable, and what is being deleted. */
export class Deletion implements Victims {
  readonly #parts: DeletionParts;
  readonly #catalog: Catalog;
  readonly #deleting = new Map<Digest, Promise<void>>();
  /** Being deleted, or deleted while the row could not be removed: absent, whatever the catalog says. */
  readonly #hidden = new Set<Digest>();

  constructor(parts: DeletionParts) {
    this.#parts = parts;
    this.#catalog = parts.catalog;
  }

  /** The stored blob, unless it is being deleted. */
  stored(digest: Digest): Descriptor | undefined {
    return this.#hidden.has(digest) ? undefined : this.#catalog.blobs.get(digest);
  }

  /** Resolves when a running deletion of the blob has ended; undefined: none is running. */
  deletionOf(digest: Digest): Promise<void> | undefined {
    return this.#deleting.get(digest);
  }

  /** Call when the blob has a file again. Returns whether it counted as absent while its row remained. */
  markRestored(digest: Digest): boolean {
    return this.#hidden.delete(digest);
  }

  get pinnedBytes(): number {
    return this.#parts.pins.bytes;
  }

  lowestPriority(count: number, after: Victim | undefined): Victim[] {
    return this.#catalog.uses.lowestPriority(count, after);
  }

  idle(forMs: number, count: number): Victim[] {
    return this.#catalog.uses.idleSince(this.#parts.context.clock.now() - forMs, count);
  }

  isEvictable(digest: Digest): boolean {
    return !this.#catalog.connection.isDamaged && this.#isUnused(digest) && !this.#wasJustUsed(digest);
  }

  async evict(victim: Victim, reason: EvictionReason): Promise<boolean> {
    const isDeleted = await this.delete(victim);
    if (!isDeleted) return false;
    this.#parts.context.onEvicted(reason);
    if (reason !== 'idle') this.#catalog.uses.evicted(victim);
    return true;
  }

  /** Deletes blobs that are neither in use nor pinned. Resolves to the deleted digests. */
  async remove(digests: Iterable<Digest>): Promise<Digest[]> {
    const removed: Digest[] = [];
    for (const digest of digests) {
      const row = this.stored(digest);
      if (!row || !this.#isUnused(digest)) continue;
      if (await this.delete(row)) removed.push(digest);
    }
    return removed;
  }

  /**
   * Hides the blob in this tick, then deletes its file and its row. Resolves to whether it was deleted. `dispose`:
   * replaces the deletion of the file.
   */
  delete(
    { digest, size }: Pick<Descriptor, 'digest' | 'size'>,
    dispose: (path: string) => Promise<void> = unlink,
  ): Promise<boolean> {
    if (!this.stored(digest)) return Promise.resolve(false);
    this.#hidden.add(digest);
    const { background, catalogLog, leases, memory, context } = this.#parts;
    try {
      // In this tick: the blob may be fetched and linked again before its deletion ends.
      this.#catalog.links.removeAllTo(digest);
    } catch (error) {
      context.log.warn({ err: error, digest }, 'the links of a blob could not be removed');
    }
    leases.forget(digest);
    memory.forget(digest);
    catalogLog.isDirty = true;
    const done = this.#delete(digest, size, dispose);
    const deleting = done.then(() => {
      if (this.#deleting.get(digest) === deleting) this.#deleting.delete(digest);
    });
    this.#deleting.set(digest, deleting);
    return background.track(done);
  }

  async #delete(digest: Digest, size: number, dispose: (path: string) => Promise<void>): Promise<boolean> {
    const { root, catalogLog, health, space, context } = this.#parts;
    try {
      await dispose(blobPath(root, digest));
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') {
        // The file could not be deleted: the blob is still stored.
        this.#hidden.delete(digest);
        health.failed(error);
        return false;
      }
    }
    const { queue } = this.#catalog.connection;
    try {
      if (this.#catalog.children.hasMoreThan(digest, manyRows)) await catalogLog.pace();
      let hasMoreChildren = await queue.write(() => this.#catalog.blobs.remove(digest));
      this.#hidden.delete(digest);
      while (hasMoreChildren) {
        await catalogLog.pace();
        await yieldToEventLoop();
        hasMoreChildren = await queue.write(() => this.#catalog.blobs.removeMoreChildren(digest));
      }
    } catch (error) {
      if (!this.#catalog.connection.isDamaged)
        context.log.warn({ err: error, digest }, 'the catalog row of a deleted blob could not be removed');
    }
    space.removed(size);
    return true;
  }

  /** Call in the tick of the deletion. */
  #isUnused(digest: Digest): boolean {
    const { leases, ingests } = this.#parts;
    if (this.stored(digest) === undefined || leases.has(digest) || ingests.isFetching(digest)) return false;
    return !this.#catalog.pins.isPinned(digest);
  }

  /** Writes unwritten uses. If there were any, the victim was selected by an outdated priority. */
  #wasJustUsed(digest: Digest): boolean {
    try {
      return this.#catalog.uses.flushOne(digest);
    } catch (error) {
      this.#parts.context.log.debug({ err: error, digest }, 'a use could not be written');
      return true;
    }
  }
}
