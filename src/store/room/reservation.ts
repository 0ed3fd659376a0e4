import { footprint } from '../catalog/tables/blobs.ts';
import type { Space } from './space.ts';

/** Frees disk space for reservations. */
export interface RoomMaker {
  /**
   * Evicts until `wanted()` bytes are free, and calls `grant` in that tick, but not after `signal` aborts. Throws
   * `store-full`.
   */
  makeRoom(wanted: () => number, grant: () => void, signal?: AbortSignal): Promise<void>;
}

/** Disk space reserved before writing. */
export class Reservation {
  readonly #space: Space;
  readonly #maker: RoomMaker;
  #bytes = 0;
  #written = 0;
  #isEnded = false;

  constructor(space: Space, maker: RoomMaker) {
    this.#space = space;
    this.#maker = maker;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Reserved bytes not yet written, which the file system still reports as free. */
  get unwritten(): number {
    return Math.max(0, this.#bytes - this.#written);
  }

  /** Reserves `bytes` in all. Throws `store-full`, also if `signal` aborts first. */
  async growTo(bytes: number, signal?: AbortSignal): Promise<void> {
    // Evaluated later: the reservation may grow while it waits.
    const wanted = (): number => footprint(bytes) - this.#bytes;
    const grant = (): void => this.#set(footprint(bytes), this.#written);
    if (wanted() > 0) await this.#maker.makeRoom(wanted, grant, signal);
  }

  /** Returns what exceeds `bytes`. */
  shrinkTo(bytes: number): void {
    this.#set(Math.min(this.#bytes, footprint(bytes)), Math.min(this.#written, bytes));
  }

  /** Counts a file left by an earlier process. */
  adopt(bytes: number): void {
    this.#set(footprint(bytes), bytes);
  }

  wrote(bytes: number): void {
    this.#set(this.#bytes, this.#written + bytes);
  }

  /** Turns the reservation into stored bytes. */
  commit(size: number): void {
    this.#end(footprint(size));
  }

  /** Call when the file is deleted or was never written. Idempotent. */
  release(): void {
    this.#end(0);
  }

  #end(stored: number): void {
    this.#set(0, 0);
    if (!this.#isEnded) this.#space.endReservation(stored);
    this.#isEnded = true;
  }

  #set(bytes: number, written: number): void {
    const before = [this.#bytes, this.unwritten] as const;
    this.#bytes = bytes;
    this.#written = written;
    // A finished reservation no longer counts.
    if (!this.#isEnded) this.#space.changed(this.#bytes - before[0], this.unwritten - before[1]);
  }
}
