import { setImmediate as yieldToEventLoop } from 'node:timers/promises';
import type { Logger } from '../../telemetry/log.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { sizeOf } from '../disk/files.ts';
import type { Health } from '../disk/health.ts';
import { backupPath, catalogPath, walPath } from '../disk/layout.ts';
import type { Partials } from '../ingest/partials.ts';
import type { Evictor } from '../room/evictor.ts';
import type { Space } from '../room/space.ts';
import type { Background } from './background.ts';
import type { CatalogJobs } from './catalog-jobs.ts';
import type { CatalogLog } from './catalog-log.ts';
import { bytesSoon, type CatalogSize } from './catalog-size.ts';
import type { DataDirectory } from './data-directory.ts';

export interface UpkeepParts {
  /** The data directory. */
  readonly root: string;
  /** Limits of the store, in bytes. */
  readonly limits: () => { readonly maxBytes: number };
  readonly background: Background;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly catalogJobs: CatalogJobs;
  readonly catalogSize: CatalogSize;
  readonly directory: DataDirectory;
  readonly evictor: Evictor;
  readonly health: Health;
  readonly partials: Partials;
  readonly space: Space;
  readonly log: Logger;
}

const writeBehindMs = 5000;
const watchMs = 250;

/** Periodic work of a store. */
export class Upkeep {
  readonly #parts: UpkeepParts;
  #isWatching = false;

  constructor(parts: UpkeepParts) {
    this.#parts = parts;
  }

  /** Runs until the store closes. */
  start(): void {
    const { background } = this.#parts;
    background.every(writeBehindMs, () => this.#writeBehind());
    background.every(watchMs, () => {
      if (this.#isWatching) return;
      this.#isWatching = true;
      const watched = this.#watch().finally(() => (this.#isWatching = false));
      background.detach(watched, 'watching the size of the catalog');
    });
  }

  /** Frees space ahead of need. */
  tidy(): void {
    const { health, evictor, background, log } = this.#parts;
    // On a disk that is not writable eviction frees no space for new blobs.
    if (health.trouble !== undefined) return;
    const tidied = evictor.tidy(background.signal).catch((error: unknown) => {
      // A reservation that fails for lack of space is reported by its caller.
      log.debug({ err: error }, 'space could not be freed ahead of need');
    });
    background.detach(tidied, 'freeing space ahead of need');
  }

  /** Writes all uses. */
  async flushUses(): Promise<void> {
    while (this.#flushSome()) await yieldToEventLoop();
  }

  /** Writes one batch of uses. Returns whether more remain. */
  #flushSome(): boolean {
    try {
      return this.#parts.catalog.uses.flush();
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'uses could not be written');
      return false;
    }
  }

  #writeBehind(): void {
    const { background, partials, directory, catalogLog, catalogJobs } = this.#parts;
    background.detach(this.flushUses(), 'writing uses');
    background.detach(partials.sweep(), 'sweeping unfinished downloads');
    this.tidy();
    background.detach(directory.maintain(), 'checking the data directory');
    if (catalogLog.isDirty) background.detach(catalogLog.checkpoint(), 'the checkpoint');
    catalogJobs.pruneIfDue();
    catalogJobs.backupIfDue();
  }

  /** The log and the catalog may grow much within one period of `#writeBehind`. */
  async #watch(): Promise<void> {
    const { root, limits, background, catalogLog, catalogJobs, catalogSize, health, space } = this.#parts;
    const backup = backupPath(root);
    const files = [catalogPath(root), walPath(root), backup, `${backup}.new`];
    const [size = 0, log = 0, backupSize = 0, newBackup = 0] = await Promise.all(files.map(sizeOf));
    const bytes = bytesSoon({ catalog: size, log, backup: backupSize, newBackup });
    space.otherBytes = Math.max(0, bytes - catalogSize.share);
    await catalogLog.truncateIfLong();
    if (health.isCatalogInMemory || health.trouble !== undefined) return;
    if (!catalogSize.isTrimming) background.detach(catalogSize.trim(0), 'trimming the catalog');
    background.detach(catalogSize.shrink(), 'shrinking the catalog');
    if (space.bytes + space.otherBytes > limits().maxBytes) this.tidy();
    if (catalogSize.isTooLargeBackup(backupSize, size)) await catalogJobs.backup();
  }
}
