import { mkdir, readdir, rename, stat, unlink } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { DroppableFiles, Evictor } from './evictor.ts';
import type { Reservation } from './reservation.ts';

const maxFiles = 10;

/**
 * The last few corrupt files, for inspection. They count against the cap and are deleted first when space is needed.
 */
export class Quarantine implements DroppableFiles {
  readonly #directory: string;
  readonly #files = new Map<string, Reservation>();

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Disk use. */
  get bytes(): number {
    let total = 0;
    for (const { bytes } of this.#files.values()) total += bytes;
    return total;
  }

  async load(evictor: Evictor): Promise<void> {
    const names = await readdir(this.#directory).catch(() => []);
    for (const name of names) await this.#add(name, evictor);
  }

  /** Moves a file into quarantine. Throws file system errors. */
  async take(path: string, evictor: Evictor): Promise<void> {
    await mkdir(this.#directory, { recursive: true });
    const name = basename(path);
    await rename(path, join(this.#directory, name));
    this.#files.get(name)?.release();
    this.#files.delete(name);
    await this.#add(name, evictor);
    while (this.#files.size > maxFiles) await this.dropOldest();
  }

  /** See `DroppableFiles`. */
  async dropOldest(): Promise<boolean> {
    const [oldest] = this.#files;
    if (!oldest) return false;
    const [name, reservation] = oldest;
    this.#files.delete(name);
    await unlink(join(this.#directory, name)).catch(() => undefined);
    reservation.release();
    return true;
  }

  async #add(name: string, evictor: Evictor): Promise<void> {
    const { size } = await stat(join(this.#directory, name));
    const reservation = evictor.reservation();
    reservation.adopt(size);
    this.#files.set(name, reservation);
  }
}
