import type { Digest } from '../oci/digest.ts';
import { MirrorError } from '../util/errors.ts';
import { formatSize } from '../util/units.ts';
import { footprint, type Victim } from './catalog.ts';

export interface EvictorOptions {
  /** The cap over everything stored and arriving, in bytes on disk. */
  maxBytes: number;
  /** What the file system must keep free. */
  minFreeBytes: number;
}

/** What the evictor may ask of the store that it serves. */
export interface Evictable {
  leastRecentlyUsed(count: number, after: Victim | undefined): Victim[];
  isLeased(digest: Digest): boolean;
  /** What unfinished fills have left that nobody works on. */
  readonly partialBytes: number;
  /** Drops what an unfinished fill has left, if there is such: it goes first. Resolves to whether there was. */
  dropPartial(): Promise<boolean>;
  /** Resolves when the bytes are free again, and have been told to `removed`. */
  evict(victim: Victim, reason: EvictionReason): Promise<void>;
  freeBytes(): Promise<number>;
}

export type EvictionReason = 'max-bytes' | 'min-free';

/** Room that was set aside before writing. */
export class Reservation {
  readonly #evictor: Evictor;
  #bytes = 0;
  #written = 0;

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

  /** Sets aside room up to `bytes` in all; throws `store-full`. */
  async growTo(bytes: number): Promise<void> {
    // Others may have it grow while it waits in line.
    const wanted = (): number => footprint(bytes) - this.#bytes;
    if (wanted() > 0) await this.#evictor.makeRoom(wanted, () => (this.#bytes = footprint(bytes)));
  }

  /** Less is needed; what was set aside is the others' again. */
  shrinkTo(bytes: number): void {
    this.#bytes = Math.min(this.#bytes, footprint(bytes));
    this.#written = Math.min(this.#written, bytes);
  }

  /** Bytes that are on disk since before this process. */
  adopt(bytes: number): void {
    this.#bytes = footprint(bytes);
    this.#written = bytes;
  }

  wrote(bytes: number): void {
    this.#written += bytes;
  }

  /** The bytes are in the store from now on. */
  keep(size: number): void {
    this.#evictor.settle(this, footprint(size));
    this.#bytes = 0;
  }

  /** The bytes are gone from the disk, or never came. Twice is fine. */
  release(): void {
    this.#evictor.settle(this, 0);
    this.#bytes = 0;
  }
}

/**
 * Keeps the store under its cap: room is made and set aside before anything is written, by putting out what was used
 * least recently. What is leased stays. Those who need room are served one after the other.
 */
export class Evictor {
  readonly #options: EvictorOptions;
  readonly #store: Evictable;
  readonly #reservations = new Set<Reservation>();
  #stored: number;
  #line: Promise<unknown> = Promise.resolve();

  constructor(options: EvictorOptions, store: Evictable, stored: number) {
    this.#options = options;
    this.#store = store;
    this.#stored = stored;
  }

  /** Bytes stored and reserved. */
  get bytes(): number {
    return this.#stored + this.#sum((reservation) => reservation.bytes);
  }

  reservation(): Reservation {
    const reservation = new Reservation(this);
    this.#reservations.add(reservation);
    return reservation;
  }

  /** `grant` is called in the same tick in which the room was found. */
  makeRoom(wanted: () => number, grant: () => void): Promise<void> {
    const turn = this.#line.then(() => this.#makeRoom(wanted(), grant));
    this.#line = turn.catch(() => undefined);
    return turn;
  }

  settle(reservation: Reservation, stored: number): void {
    if (this.#reservations.delete(reservation)) this.#stored += stored;
  }

  /** A blob of this size has left the store. */
  removed(size: number): void {
    this.#stored -= footprint(size);
  }

  async #makeRoom(bytes: number, grant: () => void): Promise<void> {
    const { maxBytes, minFreeBytes } = this.#options;
    if (bytes <= 0) return;
    if (bytes > maxBytes) throw full(bytes, 'it is larger than store.maxBytes');
    let last: Victim | undefined;
    let victims: Victim[] = [];
    for (;;) {
      const free = (await this.#store.freeBytes()) - this.#sum((reservation) => reservation.unwritten);
      const reason =
        this.bytes + bytes > maxBytes ? 'max-bytes' : free - bytes < minFreeBytes ? 'min-free' : undefined;
      if (reason === undefined) {
        grant();
        return;
      }
      // Emptying the whole store for nothing helps nobody.
      const partial = this.#store.partialBytes;
      if (this.bytes - this.#stored - partial + bytes > maxBytes) {
        throw full(bytes, 'store.maxBytes is taken by fills');
      }
      if (free + this.#stored + partial - bytes < minFreeBytes) {
        throw full(bytes, 'the file system has too little free space for store.minFreeBytes');
      }
      if (await this.#store.dropPartial()) continue;
      if (victims.length === 0) {
        victims = this.#store.leastRecentlyUsed(64, last);
        if (victims.length === 0) throw full(bytes, 'everything that is stored is in use');
      }
      last = victims.shift();
      if (!last || this.#store.isLeased(last.digest)) continue;
      await this.#store.evict(last, reason);
    }
  }

  #sum(of: (reservation: Reservation) => number): number {
    let total = 0;
    for (const reservation of this.#reservations) total += of(reservation);
    return total;
  }
}

function full(bytes: number, why: string): MirrorError {
  return new MirrorError('store-full', `no room for ${formatSize(bytes)}: ${why}`);
}
