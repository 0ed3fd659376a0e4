import { setImmediate as yieldToEventLoop } from 'node:timers/promises';
import type { Logger } from '../../telemetry/log.ts';
import type { WorkerThread } from '../../util/worker.ts';
import type { Catalog } from '../catalog/catalog.ts';
import type { WideManifest } from '../catalog/tables/uses.ts';
import { freeSpace } from '../disk/files.ts';
import type { Health } from '../disk/health.ts';
import { catalogPath } from '../disk/layout.ts';
import type { Victims } from '../room/evictor.ts';
import type { CatalogLog } from './catalog-log.ts';

export interface CatalogSizeParts {
  /** The data directory. */
  readonly root: string;
  /** Limits of the store, in bytes. */
  readonly limits: () => { readonly maxBytes: number };
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly health: Health;
  readonly victims: Victims;
  /** With its own connection to the catalog. */
  readonly worker: WorkerThread;
  /** Ends long work early. */
  readonly signal: AbortSignal;
  readonly log: Logger;
}

/** Share of the cap that the catalog's files may use beside it; bytes beyond it count against the cap. */
const shareOfCap = 0.05;
const minBytes = 32 * 1024 * 1024;
/** Share of that for the catalog without free pages; the rest is for the log, the backup, and its successor. */
const shareOfFiles = 0.25;
/** Share of that for tag and referrers lists, within the catalog. */
const shareOfLists = 0.125;
const maxListBytes = 64 * 1024 * 1024;
/** Few images have more layers. Wider manifests are evicted first when the catalog is too large. */
export const manyChildren = 100;
/** The log is truncated at half this size. */
const usualLogBytes = 8 * 1024 * 1024;
/** Approximate size of a child row in the catalog. */
const childRowBytes = 400;
const scanBatch = 16;
/** Free pages beyond this, and beyond a quarter of the catalog, are returned to the file system. */
const maxFreeBytes = 16 * 1024 * 1024;
const minFreeBytes = 1024 * 1024;
const shrinkPages = 512;
/** Free space required for shrinking. */
const shrinkRoomBytes = 64 * 1024 * 1024;
const shrinkRetryMs = 10_000;

/**
 * Limits derived from the cap, in bytes: all catalog files together, the log while it cannot be truncated, and lists
 * in the catalog.
 */
export function sharesOf({ maxBytes }: { maxBytes: number }): { all: number; log: number; lists: number } {
  const all = Math.max(minBytes, shareOfCap * maxBytes);
  return { all, log: all * shareOfFiles, lists: Math.min(all * shareOfLists, maxListBytes) };
}

/** In bytes. */
export interface CatalogFileSizes {
  readonly catalog: number;
  readonly log: number;
  readonly backup: number;
  /** The backup being written. */
  readonly newBackup: number;
}

/**
 * Expected size of the catalog's files, in bytes, with the next backup and the growth of the log: space is freed
 * before they grow.
 */
export function bytesSoon({ catalog, log, backup, newBackup }: CatalogFileSizes): number {
  return catalog + Math.max(log, usualLogBytes) + backup + Math.max(newBackup, catalog);
}

/** Keeps the catalog within its share of the disk. */
export class CatalogSize {
  readonly #parts: CatalogSizeParts;
  #trimming: Promise<void> | undefined;
  #isShrinking = false;
  #shrinkFailedAt = -Infinity;

  constructor(parts: CatalogSizeParts) {
    this.#parts = parts;
  }

  /** Limit for the catalog's files beside the cap, in bytes. */
  get share(): number {
    return sharesOf(this.#parts.limits()).all;
  }

  get isTrimming(): boolean {
    return this.#trimming !== undefined;
  }

  /** Whether the backup is from before the catalog shrank. */
  isTooLargeBackup(backupBytes: number, catalogBytes: number): boolean {
    return backupBytes > 2 * catalogBytes + minBytes / 4;
  }

  /** Makes room for a manifest with this many children. */
  makeRoom(children: number): Promise<void> {
    return this.trim(children * childRowBytes);
  }

  /**
   * Keeps the catalog within its share, with room for `bytes` more: removes lists beyond their limit, then evicts wide
   * manifests, oldest use first.
   */
  trim(bytes: number): Promise<void> {
    const done = this.#trim(bytes, this.#trimming).finally(() => {
      if (this.#trimming === done) this.#trimming = undefined;
    });
    this.#trimming = done;
    return done;
  }

  async #trim(bytes: number, before: Promise<void> | undefined): Promise<void> {
    await before;
    const { catalog, victims, signal } = this.#parts;
    const limit = this.share * shareOfFiles - bytes;
    let last: WideManifest | undefined;
    const isOver = (): boolean => {
      const size = catalog.connection.size();
      return size.bytes - size.free > limit;
    };
    if (isOver()) catalog.lists.keepToLimits();
    while (!signal.aborted && isOver()) {
      const found = catalog.uses.wideManifests(scanBatch, last);
      if (found.length === 0) return;
      for (const victim of found) {
        last = victim;
        const { digest } = victim;
        if (!catalog.children.hasMoreThan(digest, manyChildren) || !victims.isEvictable(digest)) continue;
        await victims.evict(victim, 'max-bytes');
        if (!isOver()) return;
      }
      await yieldToEventLoop();
    }
  }

  /** Returns free pages to the file system, some at a time. Never rejects. */
  async shrink(): Promise<void> {
    const { root, catalog, catalogLog, health, worker, signal, log } = this.#parts;
    if (this.#isShrinking || health.isCatalogInMemory || health.trouble !== undefined) return;
    const { bytes, free } = catalog.connection.size();
    const limit = Math.max(minFreeBytes, Math.min(maxFreeBytes, this.share / 8), bytes / 4);
    if (free <= limit || performance.now() - this.#shrinkFailedAt < shrinkRetryMs) return;
    this.#isShrinking = true;
    try {
      const disk = await freeSpace(root);
      if (disk.bytes < shrinkRoomBytes + 2 * (bytes - free)) return;
      const file = catalogPath(root);
      for (let left = Infinity; left > 0 && !signal.aborted;) {
        const now = await catalog.connection.queue.pauseDuring(() =>
          worker.call<number>('shrink', { file, pages: shrinkPages }),
        );
        await catalogLog.pace();
        await yieldToEventLoop();
        if (now >= left) break;
        left = now;
      }
      await catalogLog.truncate();
    } catch (error) {
      this.#shrinkFailedAt = performance.now();
      log.warn({ err: error }, 'the catalog could not be shrunk');
    } finally {
      this.#isShrinking = false;
    }
  }
}
