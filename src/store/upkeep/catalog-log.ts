import type { Logger } from '../../telemetry/log.ts';
import type { WorkerThread } from '../../util/worker.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { isCorrupt } from '../catalog/damage.ts';
import { sizeOf } from '../disk/files.ts';
import type { Health } from '../disk/health.ts';
import { catalogPath, walPath } from '../disk/layout.ts';

export interface CatalogLogParts {
  /** The data directory. */
  readonly root: string;
  readonly catalog: Catalog;
  readonly health: Health;
  /** With a connection of its own to the catalog. */
  readonly worker: WorkerThread;
  readonly log: Logger;
}

/** A write-ahead log of this size is cut. */
const cutLogBytes = 4 * 1024 * 1024;
/** And one of this size at once. */
const longLogBytes = 16 * 1024 * 1024;

/** The write-ahead log of the catalog: its checkpoints, and what keeps it short. */
export class CatalogLog {
  readonly #parts: CatalogLogParts;
  readonly #file: string;
  readonly #walFile: string;
  #cutting: Promise<void> | undefined;
  /** Something was written since the last checkpoint. */
  isDirty = false;
  /** The catalog is being read through: the log is not cut before that is over. */
  isHeld = false;

  constructor(parts: CatalogLogParts) {
    this.#parts = parts;
    this.#file = catalogPath(parts.root);
    this.#walFile = walPath(parts.root);
  }

  /** Nothing is written to the catalog's file: it is damaged, or the disk takes nothing and a copy is used. */
  get isFrozen(): boolean {
    const { catalog, health } = this.#parts;
    return health.isOnCopy || catalog.connection.isDamaged;
  }

  /** What the log holds goes into the catalog; a log that has grown is cut, in a moment in which nothing is written. */
  async checkpoint(): Promise<void> {
    this.isDirty = false;
    if (this.isFrozen) return;
    const { catalog, worker, log } = this.#parts;
    try {
      // While much is written, only more would come meanwhile.
      if ((await sizeOf(this.#walFile)) < longLogBytes) await worker.call('checkpoint', { file: this.#file });
      if (!this.isHeld && (await sizeOf(this.#walFile)) >= cutLogBytes) await this.cut();
    } catch (error) {
      if (isCorrupt(error)) catalog.connection.damaged(error);
      else log.warn({ err: error }, 'the catalog could not be checkpointed');
    }
  }

  /** Throws what the database says. */
  async cut(): Promise<void> {
    const { catalog, worker } = this.#parts;
    await catalog.connection.queue.during(() => worker.call('truncate', { file: this.#file }));
  }

  /** Whoever writes much waits until a log that has grown is cut. */
  async pace(): Promise<void> {
    if ((await sizeOf(this.#walFile)) < cutLogBytes) return;
    this.#cutting ??= this.checkpoint().finally(() => (this.#cutting = undefined));
    await this.#cutting;
  }
}
