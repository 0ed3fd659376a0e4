import { mkdir, rename, stat, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from '../../telemetry/log.ts';
import { errorCode } from '../../util/errors.ts';
import { blobsPath, ingestPath, lockPath } from './layout.ts';

/** The size of a manifest: an empty file can be created on a full disk. */
const probeBytes = 64 * 1024;

/** Whether the store is writable. Changes are logged; after a failure, writing is retried until it works. */
export class Health {
  readonly #root: string;
  /** Inode of the lock file when it was locked; shows whether the directory was replaced. Undefined: not locked. */
  lockInode: number | undefined;
  readonly #log: Logger;
  #trouble: string | undefined;
  #isCatalogDamaged = false;
  /** The data directory was removed or replaced: nothing can be served from it. */
  isGone = false;
  /** The disk was not writable at startup: the catalog is a copy in memory. */
  isCatalogInMemory: boolean;

  /** Without an inode the catalog is a copy in memory. */
  constructor(root: string, lockInode: number | undefined, log: Logger) {
    this.#root = root;
    this.lockInode = lockInode;
    this.isCatalogInMemory = lockInode === undefined;
    this.#log = log;
  }

  /** What is wrong; undefined: nothing. */
  get trouble(): string | undefined {
    return this.#trouble;
  }

  /** Call when a write to the disk failed. */
  failed(error: unknown): void {
    if (this.#isCatalogDamaged) return;
    this.#note(`the store cannot be written (${errorCode(error) ?? 'unknown'})`, error);
  }

  /** Lasts until the catalog is rebuilt. */
  catalogDamaged(error: unknown): void {
    this.#isCatalogDamaged = true;
    const remedy = 'stop layercache, run "layercache store rebuild", and start it again';
    const why = `the catalog is damaged: ${remedy}`;
    this.#log.error(
      { err: error },
      `${why}. Until then pulls bypass the store, and new content is not stored`,
    );
    this.#trouble = why;
  }

  /** Checks that the directory still exists and, after a failure, whether it is writable again. */
  async probe(): Promise<void> {
    const lock = await stat(lockPath(this.#root)).catch(() => undefined);
    this.isGone = this.lockInode !== undefined && lock?.ino !== this.lockInode;
    if (this.isGone) {
      this.#note('the data directory was removed or replaced while it was in use: restart layercache');
      return;
    }
    if (this.#trouble === undefined || this.#isCatalogDamaged) return;
    // Written and renamed as blobs are.
    const [from, to] = [join(ingestPath(this.#root), '.probe'), join(blobsPath(this.#root), '.probe')];
    try {
      for (const directory of [ingestPath(this.#root), blobsPath(this.#root)])
        await mkdir(directory).catch(() => undefined);
      await writeFile(from, Buffer.alloc(probeBytes));
      await rename(from, to);
      await unlink(to);
      this.#trouble = undefined;
      this.#log.info('the store is writable again');
    } catch {
      for (const path of [from, to]) await unlink(path).catch(() => undefined);
    }
  }

  #note(why: string, error?: unknown): void {
    if (this.#trouble === undefined) {
      this.#log.error({ err: error }, `${why}: pulls bypass the store, and new content is not stored`);
    }
    this.#trouble = why;
  }
}
