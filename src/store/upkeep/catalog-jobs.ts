import { stat } from 'node:fs/promises';
import { isLarge } from '../catalog/catalog-file.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { isCorrupt } from '../catalog/damage.ts';
import type { Prune, Pruned } from '../catalog/prune.ts';
import type { StoreContext } from '../context.ts';
import type { DiskWorkers } from '../disk-workers.ts';
import { backupPath, catalogPath } from '../disk/layout.ts';
import type { Background } from './background.ts';
import type { CatalogLog } from './catalog-log.ts';

export interface CatalogJobsParts {
  /** The data directory. */
  readonly root: string;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly workers: DiskWorkers;
  readonly background: Background;
  readonly context: StoreContext;
}

const backupEveryMs = 60 * 60_000;
const pruneEveryMs = 60 * 60_000;
/** Prune earlier after this many new or moved tags. */
const pruneAfterTags = 20_000;
const maxTags = 200_000;
const linksWithoutContentMs = 24 * 60 * 60_000;

/** Jobs on the whole catalog, in worker threads: check for damage, backup, pruning. */
export class CatalogJobs {
  readonly #parts: CatalogJobsParts;
  readonly #file: string;
  /** Wall clock, since it is compared with file times. */
  #backedUpAt = 0;
  #prunedAt = -Infinity;
  /** Resolves when the check started at opening has ended; undefined: none is running. */
  checking: Promise<void> | undefined;

  constructor(parts: CatalogJobsParts) {
    this.#parts = parts;
    this.#file = catalogPath(parts.root);
  }

  /** Reads the time of the last backup. */
  async load(): Promise<void> {
    this.#backedUpAt = await stat(backupPath(this.#parts.root)).then(
      ({ mtimeMs }) => mtimeMs,
      () => 0,
    );
  }

  /** Checks a large catalog for damage; a small one was checked when opened. */
  checkIfLarge(): void {
    if (!isLarge(this.#file)) return;
    const { background, catalogLog } = this.#parts;
    const check = catalogLog.deferTruncation(this.#check());
    this.checking = background.track(check).finally(() => (this.checking = undefined));
  }

  async #check(): Promise<void> {
    const { catalog, workers, background, context } = this.#parts;
    const { signal } = background;
    await workers
      .callOnOwnThread('check', { file: this.#file }, signal)
      .catch((error: unknown) => this.#failed(error))
      .catch((error: unknown) => {
        if (!catalog.connection.isDamaged && !signal.aborted)
          context.log.warn({ err: error }, 'the catalog could not be checked for damage');
      });
  }

  backupIfDue(): void {
    const { catalogLog, background } = this.#parts;
    const now = Date.now();
    if (catalogLog.isFrozen || now - this.#backedUpAt < backupEveryMs) return;
    this.#backedUpAt = now;
    background.detach(this.backup(), 'the backup');
  }

  /** Never rejects. */
  async backup(): Promise<void> {
    const { root, catalog, catalogLog, workers, context } = this.#parts;
    await catalogLog
      .deferTruncation(workers.callOnOwnThread('backup', { file: this.#file, to: backupPath(root) }))
      .catch((error: unknown) => this.#failed(error))
      .catch((error: unknown) => {
        if (!catalog.connection.isDamaged)
          context.log.warn({ err: error }, 'the catalog could not be backed up');
      });
  }

  pruneIfDue(): void {
    const { catalog, catalogLog, background, context } = this.#parts;
    if (catalogLog.isFrozen) return;
    const at = context.clock.monotonic();
    if (at - this.#prunedAt < pruneEveryMs && catalog.tags.moved < pruneAfterTags) return;
    this.#prunedAt = at;
    catalog.tags.moved = 0;
    background.detach(this.#prune(context.clock.now()), 'pruning the catalog');
  }

  async #prune(now: number): Promise<void> {
    const { workers, context } = this.#parts;
    const { log, onPruned } = context;
    const what = { file: this.#file, maxTags, linksBefore: now - linksWithoutContentMs } satisfies Prune;
    const pruned = await workers.catalog
      .call<Pruned>('prune', what)
      .catch((error: unknown) => this.#failed(error));
    for (const table of ['links', 'tags'] as const) if (pruned[table] > 0) onPruned(table, pruned[table]);
    if (pruned.links + pruned.tags > 0) log.info(pruned, 'unneeded catalog rows were removed');
  }

  /** Records damage reported by a worker thread. Throws the error again. */
  #failed(error: unknown): never {
    if (isCorrupt(error)) this.#parts.catalog.connection.recordDamage(error);
    throw error;
  }
}
