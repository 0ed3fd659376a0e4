import { setImmediate as nextTurn } from 'node:timers/promises';
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
  /** Of the store, in bytes. */
  readonly limits: () => { readonly maxBytes: number };
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly health: Health;
  readonly victims: Victims;
  /** With a connection of its own to the catalog. */
  readonly worker: WorkerThread;
  /** Ends early what takes long. */
  readonly signal: AbortSignal;
  readonly log: Logger;
}

/** The catalog's files stand beside the cap up to this share of it, and count against it above that. */
const shareOfCap = 0.05;
const leastBytes = 32 * 1024 * 1024;
/** Of that share the catalog without its free pages; the rest is for its log, its backup, and that one being made anew. */
const shareOfFiles = 0.25;
/** And lists of tags and referrers, which are in the catalog. */
const shareOfLists = 0.125;
const mostListBytes = 64 * 1024 * 1024;
/** Hardly an image has so many layers: such manifests leave first when the catalog is too large. */
export const manyChildren = 100;
/** The log is cut when it has half of that. */
const usualLogBytes = 8 * 1024 * 1024;
/** What each of them takes in the catalog, about. */
const childRowBytes = 400;
const lookedAtOnce = 16;
/** Free pages of the catalog beyond that, and beyond a quarter of it, are given back to the file system. */
const mostFreeBytes = 16 * 1024 * 1024;
const leastFreeBytes = 1024 * 1024;
const shrinkPages = 512;
/** The file system is to have so much left for that. */
const shrinkRoomBytes = 64 * 1024 * 1024;
const shrinkAgainMs = 10_000;

/** What the catalog's files may take beside a cap, in bytes: in all, their log while it cannot be cut, and lists in the catalog. */
export function sharesOf({ maxBytes }: { maxBytes: number }): { all: number; log: number; lists: number } {
  const all = Math.max(leastBytes, shareOfCap * maxBytes);
  return { all, log: all * shareOfFiles, lists: Math.min(all * shareOfLists, mostListBytes) };
}

/** Of the catalog's files, in bytes. */
export interface CatalogFileSizes {
  readonly catalog: number;
  readonly log: number;
  readonly backup: number;
  /** That is being made. */
  readonly newBackup: number;
}

/**
 * What the catalog's files take, in bytes, with what they will take soon: the next backup, and the log between two looks. So room is
 * there before they grow.
 */
export function bytesSoon({ catalog, log, backup, newBackup }: CatalogFileSizes): number {
  return catalog + Math.max(log, usualLogBytes) + backup + Math.max(newBackup, catalog);
}

/** Keeps the catalog to its share of the disk. */
export class CatalogSize {
  readonly #parts: CatalogSizeParts;
  #slimming: Promise<void> | undefined;
  #isShrinking = false;
  #shrunkAt = -Infinity;

  constructor(parts: CatalogSizeParts) {
    this.#parts = parts;
  }

  /** What the catalog's files may take beside the cap, in bytes. */
  get share(): number {
    return sharesOf(this.#parts.limits()).all;
  }

  get isSlimming(): boolean {
    return this.#slimming !== undefined;
  }

  /** A backup of that size is one of what was much larger. */
  isTooLargeBackup(backupBytes: number, catalogBytes: number): boolean {
    return backupBytes > 2 * catalogBytes + leastBytes / 4;
  }

  /** Makes room for a manifest with so many children. */
  makeRoom(children: number): Promise<void> {
    return this.slim(children * childRowBytes);
  }

  /**
   * Keeps the catalog to its share, with room for `bytes` more: lists go that are beyond their limit, as after the cap was lowered, and manifests of many parts go, those first whose last use
   * is longest ago.
   */
  slim(bytes: number): Promise<void> {
    const done = this.#slim(bytes, this.#slimming).finally(() => {
      if (this.#slimming === done) this.#slimming = undefined;
    });
    this.#slimming = done;
    return done;
  }

  async #slim(bytes: number, before: Promise<void> | undefined): Promise<void> {
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
      const found = catalog.uses.wideManifests(lookedAtOnce, last);
      if (found.length === 0) return;
      for (const victim of found) {
        last = victim;
        const { digest } = victim;
        if (!catalog.children.hasMoreThan(digest, manyChildren) || !victims.mayLeave(digest)) continue;
        await victims.evict(victim, 'max-bytes');
        if (!isOver()) return;
      }
      await nextTurn();
    }
  }

  /** Gives free pages of the catalog back to the file system, some at a time. Never rejects. */
  async shrink(): Promise<void> {
    const { root, catalog, catalogLog, health, worker, signal, log } = this.#parts;
    if (this.#isShrinking || health.isOnCopy || health.trouble !== undefined) return;
    const { bytes, free } = catalog.connection.size();
    const most = Math.max(leastFreeBytes, Math.min(mostFreeBytes, this.share / 8), bytes / 4);
    if (free <= most || performance.now() - this.#shrunkAt < shrinkAgainMs) return;
    this.#isShrinking = true;
    try {
      const disk = await freeSpace(root);
      if (disk.bytes < shrinkRoomBytes + 2 * (bytes - free)) return;
      const file = catalogPath(root);
      for (let left = Infinity; left > 0 && !signal.aborted;) {
        const now = await catalog.connection.queue.during(() =>
          worker.call<number>('shrink', { file, pages: shrinkPages }),
        );
        await catalogLog.pace();
        await nextTurn();
        if (now >= left) break;
        left = now;
      }
      await catalogLog.cut();
    } catch (error) {
      this.#shrunkAt = performance.now();
      log.warn({ err: error }, 'the catalog could not be made smaller');
    } finally {
      this.#isShrinking = false;
    }
  }
}
