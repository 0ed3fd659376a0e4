import type { Logger } from '../../telemetry/log.ts';
import type { WorkerThread } from '../../util/worker.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { inodeOf } from '../disk/files.ts';
import type { Health } from '../disk/health.ts';
import { catalogPath, lockPath } from '../disk/layout.ts';
import { lockDirectory } from '../disk/lock.ts';
import type { Partials } from '../ingest/partials.ts';
import type { Evictor } from '../room/evictor.ts';
import type { Quarantine } from '../room/quarantine.ts';
import type { CatalogLog } from './catalog-log.ts';
import { prepareDirectory } from './startup-checks.ts';

export interface DataDirectoryParts {
  readonly root: string;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly health: Health;
  readonly partials: Partials;
  readonly quarantine: Quarantine;
  readonly evictor: Evictor;
  /** With its own connection to the catalog. */
  readonly worker: WorkerThread;
  readonly log: Logger;
}

/** The data directory while in use: its lock, and loss of its files. */
export class DataDirectory {
  readonly #parts: DataDirectoryParts;
  readonly #catalogFile: string;
  #unlock: () => void;
  /** Inode of the open catalog. */
  #catalogInode: number | undefined;

  constructor(parts: DataDirectoryParts, unlock: () => void) {
    this.#parts = parts;
    this.#catalogFile = catalogPath(parts.root);
    this.#unlock = unlock;
  }

  /** Loads what earlier processes left. */
  async load(): Promise<void> {
    const { partials, quarantine, evictor } = this.#parts;
    this.#catalogInode = await inodeOf(this.#catalogFile);
    await Promise.all([partials.load(evictor), quarantine.load(evictor)]);
  }

  /**
   * Checks the directory, and restores a catalog file deleted while open: otherwise the next start would find no
   * catalog.
   */
  async maintain(): Promise<void> {
    const { catalog, catalogLog, health, worker, log } = this.#parts;
    await health.probe();
    if (health.isCatalogInMemory) {
      await this.#leaveCopy();
      return;
    }
    const file = this.#catalogFile;
    const ino = await inodeOf(file);
    if (ino === this.#catalogInode || health.isGone || health.trouble !== undefined) return;
    log.error({ file }, 'the catalog was deleted while it was in use: it is restored from the open file');
    await worker.call('forget', { file });
    await catalog.connection.rescue(file);
    this.#catalogInode = await inodeOf(file);
    catalogLog.isDirty = true;
  }

  unlock(): void {
    this.#unlock();
  }

  /** Once the disk is writable: replaces the catalog in memory by the file. */
  async #leaveCopy(): Promise<void> {
    const { root, catalog, health, log } = this.#parts;
    if (health.trouble !== undefined) return;
    let unlock: (() => void) | undefined;
    try {
      await prepareDirectory(root);
      unlock = lockDirectory(lockPath(root));
      catalog.connection.openFile(this.#catalogFile);
    } catch (error) {
      unlock?.();
      health.failed(error);
      return;
    }
    this.#unlock = unlock;
    health.isCatalogInMemory = false;
    health.lockInode = await inodeOf(lockPath(root));
    await this.load();
    log.info('the store is in use again');
  }
}
