import { footprint } from '../catalog/tables/blobs.ts';

/** The account of what the store takes on the disk, in bytes: what is stored, and what is set aside for what is arriving. */
export class Space {
  #stored: number;
  /** Of all reservations. */
  #reserved = 0;
  #unwritten = 0;
  /** Of other files of the data directory that count against the cap too. */
  otherBytes = 0;

  constructor(stored: number) {
    this.#stored = stored;
  }

  get stored(): number {
    return this.#stored;
  }

  /** What is set aside and not on disk yet, and so not yet taken from what the file system calls free. */
  get unwritten(): number {
    return this.#unwritten;
  }

  /** Stored and reserved. */
  get bytes(): number {
    return this.#stored + this.#reserved;
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
}
