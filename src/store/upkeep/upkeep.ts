import { setImmediate as nextTurn } from 'node:timers/promises';
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
  /** Of the store, in bytes. */
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

/** What is looked after by the clock, whether anybody asks or not. */
export class Upkeep {
  readonly #parts: UpkeepParts;
  #isWatching = false;

  constructor(parts: UpkeepParts) {
    this.#parts = parts;
  }

  /** From now on, until the store closes. */
  start(): void {
    const { background } = this.#parts;
    background.every(writeBehindMs, () => this.#writeBehind());
    background.every(watchMs, () => {
      if (this.#isWatching) return;
      this.#isWatching = true;
      const watched = this.#watch().finally(() => (this.#isWatching = false));
      background.behind(watched, 'looking after the catalog');
    });
  }

  /** Makes room ahead of those who will need it. */
  tidy(): void {
    const { health, evictor, background, log } = this.#parts;
    // Nothing goes for want of room on a disk that takes nothing.
    if (health.trouble !== undefined) return;
    const tidied = evictor.tidy(background.signal).catch((error: unknown) => {
      // Who needs room says it louder.
      log.debug({ err: error }, 'room could not be made ahead');
    });
    background.behind(tidied, 'making room ahead');
  }

  /** Writes down what was used. */
  async flushUses(): Promise<void> {
    while (this.#flushSome()) await nextTurn();
  }

  /** Returns whether there are more to write down. */
  #flushSome(): boolean {
    try {
      return this.#parts.catalog.uses.flush();
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'use-times could not be written');
      return false;
    }
  }

  #writeBehind(): void {
    const { background, partials, directory, catalogLog, catalogJobs } = this.#parts;
    background.behind(this.flushUses(), 'writing use-times');
    background.behind(partials.sweep(), 'sweeping what unfinished fills have left');
    this.tidy();
    background.behind(directory.lookAfter(), 'looking after the data directory');
    if (catalogLog.isDirty) background.behind(catalogLog.checkpoint(), 'the checkpoint');
    catalogJobs.pruneIfDue();
    catalogJobs.backupIfDue();
  }

  /** The catalog's log may grow faster than it is looked after, and the catalog too. */
  async #watch(): Promise<void> {
    const { root, limits, background, catalogLog, catalogJobs, catalogSize, health, space } = this.#parts;
    const backup = backupPath(root);
    const files = [catalogPath(root), walPath(root), backup, `${backup}.new`];
    const [size = 0, log = 0, backupSize = 0, newBackup = 0] = await Promise.all(files.map(sizeOf));
    const bytes = bytesSoon({ catalog: size, log, backup: backupSize, newBackup });
    space.otherBytes = Math.max(0, bytes - catalogSize.share);
    await catalogLog.pace();
    if (health.isOnCopy || health.trouble !== undefined) return;
    if (!catalogSize.isSlimming) background.behind(catalogSize.slim(0), 'making room in the catalog');
    background.behind(catalogSize.shrink(), 'making the catalog smaller');
    if (space.bytes + space.otherBytes > limits().maxBytes) this.tidy();
    if (catalogSize.isTooLargeBackup(backupSize, size)) await catalogJobs.backup();
  }
}
