import type { Digest } from '../oci/digest.ts';
import { Catalog } from './catalog/catalog.ts';
import type { OnTagMoved } from './catalog/tables/tags.ts';
import type { StoreContext, StoreOptions } from './context.ts';
import { Damage } from './damage.ts';
import { Deletion } from './deletion.ts';
import { DiskWorkers } from './disk-workers.ts';
import { freeSpace } from './disk/files.ts';
import { Health } from './disk/health.ts';
import { blobPath, catalogPath, quarantinePath } from './disk/layout.ts';
import { Ingests } from './ingest/ingests.ts';
import { Verifier } from './ingest/verifier.ts';
import { Leases } from './leases.ts';
import { Memory } from './memory.ts';
import { Publishing } from './publishing.ts';
import { Buffers } from './reading/buffers.ts';
import { Evictor } from './room/evictor.ts';
import { Pins } from './room/pins.ts';
import { Quarantine } from './room/quarantine.ts';
import { Space } from './room/space.ts';
import { Background } from './upkeep/background.ts';
import { CatalogJobs } from './upkeep/catalog-jobs.ts';
import { CatalogLog } from './upkeep/catalog-log.ts';
import { CatalogSize, sharesOf } from './upkeep/catalog-size.ts';
import { DataDirectory } from './upkeep/data-directory.ts';
import { Recheck } from './upkeep/recheck.ts';
import { Scrubber } from './upkeep/scrubber.ts';
import { Upkeep } from './upkeep/upkeep.ts';

/** The lock on the data directory. */
export interface HeldLock {
  readonly inode: number;
  readonly unlock: () => void;
}

export interface StoreParts {
  readonly root: string;
  readonly context: StoreContext;
  readonly background: Background;
  readonly buffers: Buffers;
  readonly catalog: Catalog;
  readonly catalogJobs: CatalogJobs;
  readonly catalogLog: CatalogLog;
  readonly damage: Damage;
  readonly deletion: Deletion;
  readonly directory: DataDirectory;
  readonly evictor: Evictor;
  readonly health: Health;
  readonly ingests: Ingests;
  readonly leases: Leases;
  readonly memory: Memory;
  readonly pins: Pins;
  readonly publishing: Publishing;
  readonly recheck: Recheck;
  readonly scrubber: Scrubber;
  readonly space: Space;
  readonly upkeep: Upkeep;
  readonly verifier: Verifier;
  readonly workers: DiskWorkers;
}

/**
 * Builds a store; timers are not started. Without a lock the catalog is a copy in memory. Throws when the catalog or
 * the pins are unusable.
 */
export function assemble(
  options: StoreOptions,
  context: StoreContext,
  lock: HeldLock | undefined,
): StoreParts {
  const { path: root, limits } = options;
  const { clock, log } = context;
  const health = new Health(root, lock?.inode, log);
  const catalog = openCatalog(options, context, health, (registry, repo, tag) => {
    pins.onTagChanged(registry, repo, tag);
    context.onTagChanged(registry, repo, tag);
  });
  const pins = pinsOf(options, context, catalog);
  const onDeath = (error: Error): void => log.error({ err: error }, 'a worker thread died and is restarted');
  const workers = new DiskWorkers(onDeath);
  const verifier = new Verifier(onDeath);
  const buffers = new Buffers();
  const background = new Background(catalog, log);
  const { signal } = background;
  const maxLogBytes = (): number => sharesOf(limits()).log;
  const catalogLog = new CatalogLog({
    root,
    catalog,
    health,
    worker: workers.catalog,
    maxBytes: maxLogBytes,
    log,
  });
  const shared = { root, limits, context, clock, log, health, catalog, catalogLog, pins, background };
  const catalogJobs = new CatalogJobs({ ...shared, workers });
  const ingests = new Ingests({ ...shared, verifier, buffers, worker: workers.files });
  const { partials } = ingests;

  // Reservations ask the evictor, which asks the parts that know what is in use: these come first.
  const leases = new Leases(root);
  const memory = new Memory(catalog, clock);
  const space = new Space(catalog.blobs.footprint());
  const deletion = new Deletion({ ...shared, ingests, leases, memory, space });
  const quarantine = new Quarantine(quarantinePath(root));
  const evictor = new Evictor(limits, {
    space,
    victims: deletion,
    droppable: [quarantine, partials],
    free: () => freeSpace(root),
  });

  const damage = new Damage({ ...shared, deletion, evictor, quarantine });
  const catalogSize = new CatalogSize({ ...shared, victims: deletion, worker: workers.catalog, signal });
  const publishing = new Publishing({
    ...shared,
    catalogSize,
    deletion,
    evictor,
    ingests,
    worker: workers.files,
  });
  const directory = new DataDirectory(
    { ...shared, partials, quarantine, evictor, worker: workers.catalog },
    lock?.unlock ?? ((): void => undefined),
  );
  const upkeep = new Upkeep({ ...shared, catalogJobs, catalogSize, directory, evictor, partials, space });

  const reading = {
    ...shared,
    verifier,
    pathOf: (digest: Digest) => blobPath(root, digest),
    isBusy: () => ingests.isRunning || !leases.isEmpty,
    onDamaged: (digest: Digest, why: string) => damage.quarantine(digest, why),
  };
  const recheck = new Recheck({
    ...reading,
    sizeOf: (digest) => deletion.stored(digest)?.size,
    activity: () => leases.count,
  });
  const scrubber = new Scrubber(() => limits().scrubEveryMs, {
    ...reading,
    storedBytes: () => space.bytes,
  });
  return {
    ...shared,
    buffers,
    catalogJobs,
    damage,
    deletion,
    directory,
    evictor,
    ingests,
    leases,
    memory,
    publishing,
    recheck,
    scrubber,
    space,
    upkeep,
    verifier,
    workers,
  };
}

function openCatalog(
  { path, limits, upkeep = true }: StoreOptions,
  { log }: StoreContext,
  health: Health,
  onTagMoved: OnTagMoved,
): Catalog {
  return new Catalog(catalogPath(path), {
    inMemory: health.isCatalogInMemory,
    onTagMoved,
    maxListBytes: () => sharesOf(limits()).lists,
    // Without upkeep, as in commands, damage fails the operation instead.
    ...(upkeep && { onDamaged: (error: unknown) => health.catalogDamaged(error) }),
    onLostWrite: (error) => log.warn({ err: error }, 'a write to the catalog was lost'),
  });
}

function pinsOf(options: StoreOptions, context: StoreContext, catalog: Catalog): Pins {
  try {
    return new Pins(options.limits, { ...context, catalog });
  } catch (error) {
    catalog.close();
    throw error;
  }
}
