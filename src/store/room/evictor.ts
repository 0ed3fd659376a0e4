import type { Digest } from '../../oci/digest.ts';
import { orLate } from '../../util/deadline.ts';
import { MirrorError } from '../../util/errors.ts';
import { formatSize } from '../../util/units.ts';
import { footprint } from '../catalog/blobs.ts';
import type { Victim } from '../catalog/uses.ts';

export interface EvictorOptions {
  /** The cap over everything stored and arriving, in bytes on disk. */
  maxBytes: number;
  /** What the file system must keep free. */
  minFreeBytes: number;
  /** What nobody asked for that long leaves; 0: it stays. */
  maxIdleMs: number;
}

/** What the evictor may ask of the store that it serves. */
export interface Evictable {
  leastWorthy(count: number, after: Victim | undefined): Victim[];
  /** What nobody has asked for since `maxIdleMs`. */
  idle(count: number): Victim[];
  /** It is held, and neither in use nor pinned. */
  mayLeave(digest: Digest): boolean;
  /** Bytes that are pinned. */
  readonly pinnedBytes: number;
  /** Bytes of other files of the data directory that count against the cap too. */
  readonly otherBytes: number;
  /** What unfinished fills have left that nobody works on. */
  readonly partialBytes: number;
  /** Drops what an unfinished fill has left, if there is such: it goes first. Resolves to whether there was. */
  dropPartial(): Promise<boolean>;
  /** Resolves, when the bytes are free again and have been told to `removed`, to whether that could be done. */
  evict(victim: Victim, reason: EvictionReason): Promise<boolean>;
  /** What the file system has left: bytes, and files; Infinity where it does not count these. */
  free(): Promise<{ bytes: number; files: number }>;
}

export type EvictionReason = 'max-bytes' | 'min-free' | 'idle';

/** Room that was set aside before writing. */
export class Reservation {
  readonly #evictor: Evictor;
  #bytes = 0;
  #written = 0;
  #isOver = false;

  constructor(evictor: Evictor) {
    this.#evictor = evictor;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** The part that is not on disk yet, and so not yet taken from what the file system calls free. */
  get unwritten(): number {
    return Math.max(0, this.#bytes - this.#written);
  }

  /** Sets aside room up to `bytes` in all; throws `store-full`, also when there is none before the signal aborts. */
  async growTo(bytes: number, signal?: AbortSignal): Promise<void> {
    // Others may have it grow while it waits in line.
    const wanted = (): number => footprint(bytes) - this.#bytes;
    const grant = (): void => this.#set(footprint(bytes), this.#written);
    if (wanted() > 0) await this.#evictor.makeRoom(wanted, grant, signal);
  }

  /** Less is needed; what was set aside is the others' again. */
  shrinkTo(bytes: number): void {
    this.#set(Math.min(this.#bytes, footprint(bytes)), Math.min(this.#written, bytes));
  }

  /** Bytes that are on disk since before this process. */
  adopt(bytes: number): void {
    this.#set(footprint(bytes), bytes);
  }

  wrote(bytes: number): void {
    this.#set(this.#bytes, this.#written + bytes);
  }

  /** The bytes are in the store from now on. */
  keep(size: number): void {
    this.#settle(footprint(size));
  }

  /** The bytes are gone from the disk, or never came. Twice is fine. */
  release(): void {
    this.#settle(0);
  }

  #settle(stored: number): void {
    this.#set(0, 0);
    if (!this.#isOver) this.#evictor.settle(stored);
    this.#isOver = true;
  }

  #set(bytes: number, written: number): void {
    const before = [this.#bytes, this.unwritten] as const;
    this.#bytes = bytes;
    this.#written = written;
    // What is over is on nobody's account.
    if (!this.#isOver) this.#evictor.changed(this.#bytes - before[0], this.unwritten - before[1]);
  }
}

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
export class Evictor {
  readonly #options: EvictorOptions;
  readonly #store: Evictable;
  #stored: number;
  /** Of all reservations. */
  #reserved = 0;
  #unwritten = 0;
  #line: Promise<unknown> = Promise.resolve();
  #tidying: Promise<void> | undefined;
  /** There is less free space than there should be, and nothing that could be put out. */
  isShort = false;

  constructor(options: EvictorOptions, store: Evictable, stored: number) {
    this.#options = options;
    this.#store = store;
    this.#stored = stored;
  }

  /** Bytes stored and reserved. */
  get bytes(): number {
    return this.#stored + this.#reserved;
  }

  reservation(): Reservation {
    return new Reservation(this);
  }

  /** `grant` is called in the same tick in which the room was found, and not after the signal has aborted. */
  async makeRoom(wanted: () => number, grant: () => void, signal?: AbortSignal): Promise<void> {
    const made = this.#inLine(() => this.#makeRoom(wanted(), grant, signal));
    const late = (): MirrorError => full(wanted(), 'none could be made in time');
    await (signal ? orLate(made, signal, late) : made);
  }

  /** A reservation is over, and so much of it is stored. */
  settle(stored: number): void {
    this.#stored += stored;
  }

  /** A reservation has become larger or smaller. */
  changed(bytes: number, unwritten: number): void {
    this.#reserved += bytes;
    this.#unwritten += unwritten;
  }

  /** A blob of this size has left the store. */
  removed(size: number): void {
    this.#stored -= footprint(size);
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
    const scan = new Scan(this.#store);
    for (let again = true; again && !signal.aborted;) {
      again = await this.#inLine(async () => {
        if (await this.#evictIdle()) return true;
        const { maxBytes, minFreeBytes } = this.#options;
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
    const { maxBytes } = this.#options;
    if (bytes <= 0) return;
    if (bytes > maxBytes) throw full(bytes, 'it is larger than store.maxBytes');
    const scan = new Scan(this.#store);
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
    const { maxBytes, minFreeBytes } = this.#options;
    const { bytes: freeBytes, files } = await this.#store.free();
    const free = freeBytes - this.#unwritten;
    const partial = this.#store.partialBytes;
    const evictable = Math.max(0, this.#stored - this.#store.pinnedBytes) + partial;
    const used = this.bytes + this.#store.otherBytes;
    if (used + underCap > maxBytes) {
      return { reason: 'max-bytes', isCurable: used - evictable + underCap <= maxBytes };
    }
    if (free - underFree < minFreeBytes) {
      this.isShort = free + evictable < minFreeBytes;
      return { reason: 'min-free', isCurable: free + evictable - underFree >= minFreeBytes };
    }
    if (files < leastFreeFiles) {
      this.isShort = this.#stored === 0;
      return { reason: 'min-free', isCurable: evictable > 0 };
    }
    this.isShort = false;
    return undefined;
  }

  /** Resolves to whether something went. */
  async #evictOne(scan: Scan, reason: EvictionReason): Promise<boolean> {
    if (await this.#store.dropPartial()) return true;
    const victim = scan.next();
    return victim !== undefined && (await this.#store.evict(victim, reason));
  }

  async #evictIdle(): Promise<boolean> {
    const idle = this.#options.maxIdleMs > 0 ? this.#store.idle(idleAtOnce) : [];
    let went = 0;
    for (const victim of idle) {
      if (!this.#store.mayLeave(victim.digest)) continue;
      if (!(await this.#store.evict(victim, 'idle'))) return false;
      went += 1;
    }
    return went > 0;
  }
}

/** What may leave, from the least worthy on; what is leased is passed over. */
class Scan {
  readonly #store: Evictable;
  #last: Victim | undefined;
  #found: Victim[] = [];

  constructor(store: Evictable) {
    this.#store = store;
  }

  next(): Victim | undefined {
    for (;;) {
      if (this.#found.length === 0) this.#found = this.#store.leastWorthy(lookedAtOnce, this.#last);
      const victim = this.#found.shift();
      if (!victim) return undefined;
      this.#last = victim;
      if (this.#store.mayLeave(victim.digest)) return victim;
    }
  }
}

function full(bytes: number, why: string): MirrorError {
  return new MirrorError('store-full', `no room for ${formatSize(bytes)}: ${why}`);
}
