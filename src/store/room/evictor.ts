import type { Digest } from '../../oci/digest.ts';
import { untilAborted } from '../../util/deadline.ts';
import { MirrorError } from '../../util/errors.ts';
import { Serial } from '../../util/serial.ts';
import { formatSize } from '../../util/units.ts';
import type { Victim } from '../catalog/tables/uses.ts';
import type { FreeSpace } from '../disk/files.ts';
import { Reservation, type RoomMaker } from './reservation.ts';
import type { Space } from './space.ts';

export interface RoomLimits {
  /** Cap on stored and reserved disk space, in bytes. */
  readonly maxBytes: number;
  /** Free space to leave on the file system, in bytes. */
  readonly minFreeBytes: number;
  /** Evict what was unused this long, in ms; 0: never. */
  readonly maxIdleMs: number;
}

/** The evictable blobs of a store. */
export interface Victims {
  /** Unpinned blobs in ascending priority, after `after`. */
  lowestPriority(count: number, after: Victim | undefined): Victim[];
  /** Unpinned blobs unused for this long (ms). */
  idle(forMs: number, count: number): Victim[];
  /** Whether the blob is stored, not in use, not pinned, and not used since it was selected. */
  isEvictable(digest: Digest): boolean;
  /** Disk use of pinned blobs. */
  readonly pinnedBytes: number;
  /** Resolves, once the space is freed and no longer counted, to whether the blob was deleted. */
  evict(victim: Victim, reason: EvictionReason): Promise<boolean>;
}

/** Files that are deleted before any blob is evicted. */
export interface DroppableFiles {
  /** Disk use. */
  readonly bytes: number;
  /** Deletes the oldest file. Resolves to whether there was one. */
  dropOldest(): Promise<boolean>;
}

export interface EvictorParts {
  readonly space: Space;
  readonly victims: Victims;
  /** In the order in which they are emptied. */
  readonly droppable: readonly DroppableFiles[];
  /** Free space of the file system. */
  readonly free: () => Promise<FreeSpace>;
}

export type EvictionReason = 'max-bytes' | 'min-free' | 'idle';

/** Share of the cap that is freed ahead of need, so that downloads do not wait for files to be deleted. */
const aheadShare = 0.02;
const maxAhead = 1_000_000_000;
/** Free inodes needed by downloads and SQLite. */
const minFreeFiles = 12;
const idleBatch = 16;
const scanBatch = 64;

/**
 * Keeps the store under its cap and the file system above its free space. Space is reserved before anything is
 * written, and freed by evicting unpinned, unleased blobs of the lowest priority. Requests are served one at a time.
 */
export class Evictor implements RoomMaker {
  readonly #limits: () => RoomLimits;
  readonly #space: Space;
  readonly #victims: Victims;
  readonly #droppable: readonly DroppableFiles[];
  readonly #free: () => Promise<FreeSpace>;
  readonly #serial = new Serial();
  #tidying: Promise<void> | undefined;
  /** Free space is below store.minFreeBytes, and eviction cannot help. */
  isLowOnSpace = false;

  constructor(limits: () => RoomLimits, { space, victims, droppable, free }: EvictorParts) {
    this.#limits = limits;
    this.#space = space;
    this.#victims = victims;
    this.#droppable = droppable;
    this.#free = free;
  }

  reservation(): Reservation {
    return new Reservation(this.#space, this);
  }

  /** See `RoomMaker`. */
  async makeRoom(wanted: () => number, grant: () => void, signal?: AbortSignal): Promise<void> {
    const granted = this.#serial.run(() => this.#makeRoom(wanted(), grant, signal));
    const timedOut = (): MirrorError => full(wanted(), 'no space was freed in time');
    await (signal ? untilAborted(granted, signal, timedOut) : granted);
  }

  /**
   * Evicts idle blobs, and frees space ahead of need. One blob per step, so that reservations are served in between.
   * `signal` ends it early.
   */
  tidy(signal: AbortSignal): Promise<void> {
    this.#tidying ??= this.#tidy(signal).finally(() => (this.#tidying = undefined));
    return this.#tidying;
  }

  async #tidy(signal: AbortSignal): Promise<void> {
    const ahead = (bytes: number): number => Math.min(bytes * aheadShare, maxAhead);
    const scan = new Scan(this.#victims);
    for (let again = true; again && !signal.aborted;) {
      again = await this.#serial.run(async () => {
        if (await this.#evictIdle()) return true;
        const { maxBytes, minFreeBytes } = this.#limits();
        const shortfall = await this.#shortfall(ahead(maxBytes), ahead(minFreeBytes));
        return (
          shortfall !== undefined && shortfall.evictionHelps && (await this.#evictOne(scan, shortfall.reason))
        );
      });
    }
  }

  async #makeRoom(bytes: number, grant: () => void, signal: AbortSignal | undefined): Promise<void> {
    const { maxBytes } = this.#limits();
    if (bytes <= 0) return;
    if (bytes > maxBytes) throw full(bytes, 'it is larger than store.maxBytes');
    const scan = new Scan(this.#victims);
    for (;;) {
      const shortfall = await this.#shortfall(bytes, bytes);
      if (signal?.aborted) return;
      if (!shortfall) {
        grant();
        return;
      }
      // Evicting everything would not be enough: evict nothing.
      if (!shortfall.evictionHelps) {
        throw full(
          bytes,
          shortfall.reason === 'max-bytes'
            ? 'store.maxBytes is reserved by running downloads'
            : 'the file system has too little free space for store.minFreeBytes, or too few free inodes',
        );
      }
      if (!(await this.#evictOne(scan, shortfall.reason))) {
        throw full(bytes, 'all stored blobs are in use, pinned, or cannot be deleted');
      }
    }
  }

  /**
   * Which limit prevents reserving `underCap` or `underFree` bytes, and whether eviction can help; undefined: none.
   */
  async #shortfall(
    underCap: number,
    underFree: number,
  ): Promise<{ reason: 'max-bytes' | 'min-free'; evictionHelps: boolean } | undefined> {
    const { maxBytes, minFreeBytes } = this.#limits();
    const { bytes: freeBytes, files } = await this.#free();
    const { stored, unwritten, bytes, otherBytes } = this.#space;
    const free = freeBytes - unwritten;
    const droppableBytes = this.#droppable.reduce((sum, files) => sum + files.bytes, 0);
    const evictable = Math.max(0, stored - this.#victims.pinnedBytes) + droppableBytes;
    const used = bytes + otherBytes;
    if (used + underCap > maxBytes) {
      return { reason: 'max-bytes', evictionHelps: used - evictable + underCap <= maxBytes };
    }
    if (free - underFree < minFreeBytes) {
      this.isLowOnSpace = free + evictable < minFreeBytes;
      return { reason: 'min-free', evictionHelps: free + evictable - underFree >= minFreeBytes };
    }
    if (files < minFreeFiles) {
      this.isLowOnSpace = stored === 0;
      return { reason: 'min-free', evictionHelps: evictable > 0 };
    }
    this.isLowOnSpace = false;
    return undefined;
  }

  /** Resolves to whether something was deleted. */
  async #evictOne(scan: Scan, reason: EvictionReason): Promise<boolean> {
    for (const files of this.#droppable) if (await files.dropOldest()) return true;
    const victim = scan.next();
    return victim !== undefined && (await this.#victims.evict(victim, reason));
  }

  async #evictIdle(): Promise<boolean> {
    const { maxIdleMs } = this.#limits();
    const idle = maxIdleMs > 0 ? this.#victims.idle(maxIdleMs, idleBatch) : [];
    let evicted = 0;
    for (const victim of idle) {
      if (!this.#victims.isEvictable(victim.digest)) continue;
      if (!(await this.#victims.evict(victim, 'idle'))) return false;
      evicted += 1;
    }
    return evicted > 0;
  }
}

/** Iterates over evictable blobs in ascending priority. */
class Scan {
  readonly #victims: Victims;
  #last: Victim | undefined;
  #found: Victim[] = [];

  constructor(victims: Victims) {
    this.#victims = victims;
  }

  next(): Victim | undefined {
    for (;;) {
      if (this.#found.length === 0) this.#found = this.#victims.lowestPriority(scanBatch, this.#last);
      const victim = this.#found.shift();
      if (!victim) return undefined;
      this.#last = victim;
      if (this.#victims.isEvictable(victim.digest)) return victim;
    }
  }
}

function full(bytes: number, why: string): MirrorError {
  return new MirrorError('store-full', `no room for ${formatSize(bytes)}: ${why}`);
}
