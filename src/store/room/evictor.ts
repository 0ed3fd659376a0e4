import type { Digest } from '../../oci/digest.ts';
import { untilAborted } from '../../util/deadline.ts';
import { MirrorError } from '../../util/errors.ts';
import { formatSize } from '../../util/units.ts';
import type { Victim } from '../catalog/tables/uses.ts';
import type { FreeSpace } from '../disk/files.ts';
import { Reservation, type RoomMaker } from './reservation.ts';
import type { Space } from './space.ts';

export interface RoomLimits {
  /** The cap over everything stored and arriving, in bytes on disk. */
  readonly maxBytes: number;
  /** What the file system must keep free. */
  readonly minFreeBytes: number;
  /** Evict what was unused this long; 0: nothing. */
  readonly maxIdleMs: number;
}

/** What is stored and may leave. */
export interface Victims {
  /** Those that are worth least, in order; `after`: the last of those that were given before. */
  leastWorthy(count: number, after: Victim | undefined): Victim[];
  /** What was not used for that long. */
  idle(forMs: number, count: number): Victim[];
  /** It is held, and neither in use nor pinned, nor used since it was chosen. */
  mayLeave(digest: Digest): boolean;
  /** Bytes that are pinned. */
  readonly pinnedBytes: number;
  /** Resolves, when the bytes are free again and off the account, to whether that could be done. */
  evict(victim: Victim, reason: EvictionReason): Promise<boolean>;
}

/** Files that are worth less than anything stored: they go first. */
export interface Leftovers {
  /** Bytes on disk. */
  readonly bytes: number;
  /** Resolves to whether there was one to drop. */
  dropOldest(): Promise<boolean>;
}

export interface EvictorParts {
  readonly space: Space;
  readonly victims: Victims;
  /** Those of the first go first. */
  readonly leftovers: readonly Leftovers[];
  /** Of the file system. */
  readonly free: () => Promise<FreeSpace>;
}

export type EvictionReason = 'max-bytes' | 'min-free' | 'idle';

/** So much is kept ready, so that nobody waits for a file to be deleted. */
const aheadShare = 0.02;
const mostAhead = 1_000_000_000;
/** For fills, and for SQLite's own. */
const leastFreeFiles = 12;
const idleAtOnce = 16;
const lookedAtOnce = 64;

/**
 * Keeps the store under its cap: room is made and set aside before anything is written, by putting out what is worth
 * least. What is leased or pinned stays. Those who need room are served one after the other; some of it is made ahead.
 */
export class Evictor implements RoomMaker {
  readonly #limits: () => RoomLimits;
  readonly #space: Space;
  readonly #victims: Victims;
  readonly #leftovers: readonly Leftovers[];
  readonly #free: () => Promise<FreeSpace>;
  #line: Promise<unknown> = Promise.resolve();
  #tidying: Promise<void> | undefined;
  /** There is less free space than there should be, and nothing that could be put out. */
  isShort = false;

  constructor(limits: () => RoomLimits, { space, victims, leftovers, free }: EvictorParts) {
    this.#limits = limits;
    this.#space = space;
    this.#victims = victims;
    this.#leftovers = leftovers;
    this.#free = free;
  }

  reservation(): Reservation {
    return new Reservation(this.#space, this);
  }

  /** `grant` is called in the same tick in which the room was found, and not after the signal has aborted. */
  async makeRoom(wanted: () => number, grant: () => void, signal?: AbortSignal): Promise<void> {
    const made = this.#inLine(() => this.#makeRoom(wanted(), grant, signal));
    const late = (): MirrorError => full(wanted(), 'none could be made in time');
    await (signal ? untilAborted(made, signal, late) : made);
  }

  /**
   * In small steps, between those who wait for room: puts out what is idle, and what is above the high-water mark, as after
   * the cap was lowered or while others fill the disk. `signal` ends it early.
   */
  tidy(signal: AbortSignal): Promise<void> {
    this.#tidying ??= this.#tidy(signal).finally(() => (this.#tidying = undefined));
    return this.#tidying;
  }

  async #tidy(signal: AbortSignal): Promise<void> {
    const ahead = (bytes: number): number => Math.min(bytes * aheadShare, mostAhead);
    const scan = new Scan(this.#victims);
    for (let again = true; again && !signal.aborted;) {
      again = await this.#inLine(async () => {
        if (await this.#evictIdle()) return true;
        const { maxBytes, minFreeBytes } = this.#limits();
        const lack = await this.#lack(ahead(maxBytes), ahead(minFreeBytes));
        return lack !== undefined && lack.isCurable && (await this.#evictOne(scan, lack.reason));
      });
    }
  }

  #inLine<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#line.then(work);
    this.#line = turn.catch(() => undefined);
    return turn;
  }

  async #makeRoom(bytes: number, grant: () => void, signal: AbortSignal | undefined): Promise<void> {
    const { maxBytes } = this.#limits();
    if (bytes <= 0) return;
    if (bytes > maxBytes) throw full(bytes, 'it is larger than store.maxBytes');
    const scan = new Scan(this.#victims);
    for (;;) {
      const lack = await this.#lack(bytes, bytes);
      if (signal?.aborted) return;
      if (!lack) {
        grant();
        return;
      }
      // Emptying the whole store for nothing helps nobody.
      if (!lack.isCurable) {
        throw full(
          bytes,
          lack.reason === 'max-bytes'
            ? 'store.maxBytes is taken by fills'
            : 'the file system has too little free space for store.minFreeBytes, or too few free inodes',
        );
      }
      if (!(await this.#evictOne(scan, lack.reason))) {
        throw full(bytes, 'what is stored is in use or pinned, or cannot be deleted');
      }
    }
  }

  /** Which bound stands in the way of so many bytes more, and whether putting things out can help. */
  async #lack(
    underCap: number,
    underFree: number,
  ): Promise<{ reason: 'max-bytes' | 'min-free'; isCurable: boolean } | undefined> {
    const { maxBytes, minFreeBytes } = this.#limits();
    const { bytes: freeBytes, files } = await this.#free();
    const { stored, unwritten, bytes, otherBytes } = this.#space;
    const free = freeBytes - unwritten;
    const leftBytes = this.#leftovers.reduce((sum, left) => sum + left.bytes, 0);
    const evictable = Math.max(0, stored - this.#victims.pinnedBytes) + leftBytes;
    const used = bytes + otherBytes;
    if (used + underCap > maxBytes) {
      return { reason: 'max-bytes', isCurable: used - evictable + underCap <= maxBytes };
    }
    if (free - underFree < minFreeBytes) {
      this.isShort = free + evictable < minFreeBytes;
      return { reason: 'min-free', isCurable: free + evictable - underFree >= minFreeBytes };
    }
    if (files < leastFreeFiles) {
      this.isShort = stored === 0;
      return { reason: 'min-free', isCurable: evictable > 0 };
    }
    this.isShort = false;
    return undefined;
  }

  /** Resolves to whether something went. */
  async #evictOne(scan: Scan, reason: EvictionReason): Promise<boolean> {
    for (const left of this.#leftovers) if (await left.dropOldest()) return true;
    const victim = scan.next();
    return victim !== undefined && (await this.#victims.evict(victim, reason));
  }

  async #evictIdle(): Promise<boolean> {
    const { maxIdleMs } = this.#limits();
    const idle = maxIdleMs > 0 ? this.#victims.idle(maxIdleMs, idleAtOnce) : [];
    let went = 0;
    for (const victim of idle) {
      if (!this.#victims.mayLeave(victim.digest)) continue;
      if (!(await this.#victims.evict(victim, 'idle'))) return false;
      went += 1;
    }
    return went > 0;
  }
}

/** What may leave, from the least worthy on; what is leased is passed over. */
class Scan {
  readonly #victims: Victims;
  #last: Victim | undefined;
  #found: Victim[] = [];

  constructor(victims: Victims) {
    this.#victims = victims;
  }

  next(): Victim | undefined {
    for (;;) {
      if (this.#found.length === 0) this.#found = this.#victims.leastWorthy(lookedAtOnce, this.#last);
      const victim = this.#found.shift();
      if (!victim) return undefined;
      this.#last = victim;
      if (this.#victims.mayLeave(victim.digest)) return victim;
    }
  }
}

function full(bytes: number, why: string): MirrorError {
  return new MirrorError('store-full', `no room for ${formatSize(bytes)}: ${why}`);
}
