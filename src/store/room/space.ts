import { footprint } from '../catalog/tables/blobs.ts';

/** Disk space used by the store, in bytes: stored blobs, and reservations. */
export class Space {
  #stored: number;
  #reserved = 0;
  #unwritten = 0;
  /** Other files of the data directory that count against the cap. */
  otherBytes = 0;

  constructor(stored: number) {
    this.#stored = stored;
  }

  get stored(): number {
    return this.#stored;
  }

  /** Reserved bytes not yet written, which the file system still reports as free. */
  get unwritten(): number {
    return this.#unwritten;
  }

  /** Stored and reserved. */
  get bytes(): number {
    return this.#stored + this.#reserved;
  }

  /** A reservation ended; `stored` bytes of it are stored. */
  endReservation(stored: number): void {
    this.#stored += stored;
  }

  /** A reservation grew or shrank by so many bytes. */
  changed(bytes: number, unwritten: number): void {
    this.#reserved += bytes;
    this.#unwritten += unwritten;
  }

  /** A blob of this size was deleted. */
  removed(size: number): void {
    this.#stored -= footprint(size);
  }
}
