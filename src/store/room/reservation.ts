import { footprint } from '../catalog/tables/blobs.ts';
import type { Space } from './space.ts';

/** Who finds room, and puts out for it what is stored. */
export interface RoomMaker {
  /**
   * `grant` is called in the same tick in which the room was found, and not after the signal has aborted. Throws `store-full`.
   */
  makeRoom(wanted: () => number, grant: () => void, signal?: AbortSignal): Promise<void>;
}

/** Room that was set aside before writing. */
export class Reservation {
  readonly #space: Space;
  readonly #maker: RoomMaker;
  #bytes = 0;
  #written = 0;
  #isOver = false;

  constructor(space: Space, maker: RoomMaker) {
    this.#space = space;
    this.#maker = maker;
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
    if (wanted() > 0) await this.#maker.makeRoom(wanted, grant, signal);
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
    if (!this.#isOver) this.#space.settle(stored);
    this.#isOver = true;
  }

  #set(bytes: number, written: number): void {
    const before = [this.#bytes, this.unwritten] as const;
    this.#bytes = bytes;
    this.#written = written;
    // What is over is on nobody's account.
    if (!this.#isOver) this.#space.changed(this.#bytes - before[0], this.unwritten - before[1]);
  }
}
