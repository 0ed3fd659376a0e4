import { mkdir, rename, stat, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from '../../telemetry/log.ts';
import { errorCode } from '../../util/errors.ts';
import { blobsPath, ingestPath, lockPath } from './layout.ts';

/** As much as a manifest takes: an empty file fits on a full disk. */
const probeBytes = 64 * 1024;

/** Whether the disk takes what is written: said when it changes, and tried until it does again. */
export class Health {
  readonly #root: string;
  /** The inode of the lock, which shows whether the directory is still the one that was opened; undefined: there is none yet. */
  lockedFile: number | undefined;
  readonly #log: Logger;
  #trouble: string | undefined;
  #isCatalogDamaged = false;
  /** The data directory is not there any more: nothing of it can be served. */
  isGone = false;
  /** The disk did not take anything at the start: the catalog is a copy in memory. */
  isOnCopy: boolean;

  /** Without a lock the catalog is a copy in memory. */
  constructor(root: string, lockedFile: number | undefined, log: Logger) {
    this.#root = root;
    this.lockedFile = lockedFile;
    this.isOnCopy = lockedFile === undefined;
    this.#log = log;
  }

  /** What is wrong; undefined: nothing. */
  get trouble(): string | undefined {
    return this.#trouble;
  }

  failed(error: unknown): void {
    if (this.#isCatalogDamaged) return;
    this.#note(`the store cannot be written (${errorCode(error) ?? 'unknown'})`, error);
  }

  /** That lasts until it is made anew. */
  catalogDamaged(error: unknown): void {
    this.#isCatalogDamaged = true;
    const remedy = 'stop layercache, run "layercache store rebuild", and start it again';
    const why = `the catalog is damaged: ${remedy}`;
    this.#log.error(
      { err: error },
      `${why}. Until then pulls go on past it, and what is missing is not kept`,
    );
    this.#trouble = why;
  }

  /** Looks whether the directory is still there, and, while there is trouble, whether it can be written. */
  async probe(): Promise<void> {
    const lock = await stat(lockPath(this.#root)).catch(() => undefined);
    this.isGone = this.lockedFile !== undefined && lock?.ino !== this.lockedFile;
    if (this.isGone) {
      this.#note('the data directory was removed or replaced while it was in use: restart layercache');
      return;
    }
    if (this.#trouble === undefined || this.#isCatalogDamaged) return;
    // The way that blobs go.
    const [from, to] = [join(ingestPath(this.#root), '.probe'), join(blobsPath(this.#root), '.probe')];
    try {
      for (const directory of [ingestPath(this.#root), blobsPath(this.#root)])
        await mkdir(directory).catch(() => undefined);
      await writeFile(from, Buffer.alloc(probeBytes));
      await rename(from, to);
      await unlink(to);
      this.#trouble = undefined;
      this.#log.info('the store can be written again');
    } catch {
      for (const path of [from, to]) await unlink(path).catch(() => undefined);
    }
  }

  #note(why: string, error?: unknown): void {
    if (this.#trouble === undefined) {
      this.#log.error({ err: error }, `${why}: pulls go on past it, and what is missing is not kept`);
    }
    this.#trouble = why;
  }
}
