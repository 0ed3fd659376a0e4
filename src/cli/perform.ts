import { existsSync } from 'node:fs';
import pino from 'pino';
import { withConfiguredRegistry } from '../config/aliases.ts';
import type { Config } from '../config/types.ts';
import { storeLimitsOf, targetOf } from '../service/from-config.ts';
import { BlobStore } from '../store/blob-store.ts';
import { openToRead } from '../store/catalog/catalog-file.ts';
import { Catalog } from '../store/catalog/catalog.ts';
import { explain, isCorrupt } from '../store/catalog/damage.ts';
import { blobsPath, catalogPath } from '../store/disk/layout.ts';
import { LockedError } from '../store/disk/lock.ts';
import { Inventory } from '../store/operations/inventory.ts';
import { operations, type Reader, type Target } from '../store/operations/operations.ts';
import { systemClock } from '../util/clock.ts';
import { callRunningMirror } from './operations-client.ts';

/**
 * Runs an operation. Read-only operations read the catalog directly, also while a mirror is running. Others go through the
 * running mirror, or work on the files if none is running.
 */
export async function perform(
  config: Config,
  name: string,
  args: Record<string, unknown>,
): Promise<{ result: unknown; prepared: ReturnType<(typeof operations)[string]['prepare']> }> {
  const operation = operations[name];
  if (!operation) throw new Error(`${name}: no such operation`);
  const prepared = operation.prepare(withConfiguredRegistry(args, config.upstreams));
  const { read, run } = prepared;
  if (read) return { prepared, result: await withReader(config, read) };
  if (!run) throw new Error(`${name}: only for reading`);
  try {
    return { prepared, result: await withStore(config, run, operation.needsRoom === true) };
  } catch (error) {
    if (!(error instanceof LockedError)) throw error;
    return { prepared, result: await callRunningMirror(config, name, args) };
  }
}

/** Opens the catalog read-only; creates no files beside it. */
export async function withReader<T>({ store }: Config, work: (reader: Reader) => Promise<T>): Promise<T> {
  const { path, maxBytes, pins } = store;
  let inventory: Inventory | undefined;
  let catalog: Catalog | undefined;
  const tryOpen = <O>(open: () => O): O => {
    try {
      return open();
    } catch (error) {
      if (isCorrupt(error)) throw error;
      const cause = error as Error;
      throw new Error(`${path}: cannot read the store (${cause.message})`, { cause });
    }
  };
  const reader: Reader = {
    get inventory() {
      return (inventory ??= tryOpen(() => new Inventory(path)));
    },
    get catalog() {
      return (catalog ??= tryOpen(() => new Catalog(catalogPath(path), { reader: openToRead(path) })));
    },
    maxBytes,
    configuredPins: pins,
  };
  try {
    return await work(reader);
  } catch (error) {
    throw isCorrupt(error) ? explain(error, catalogPath(path)) : error;
  } finally {
    inventory?.close();
    catalog?.close();
  }
}

/** Throws `LockedError` if a mirror is running on the store. */
async function withStore<T>(
  config: Config,
  work: (target: Target) => Promise<T>,
  needsRoom: boolean,
): Promise<T> {
  const { path } = config.store;
  mustExist(path);
  const configured = storeLimitsOf(config);
  const limits = needsRoom ? configured : { ...configured, maxBytes: Infinity };
  // Only the requested change: no eviction, no upkeep.
  const options = { path, limits: () => limits, upkeep: false };
  const store = await BlobStore.open(options, {
    clock: systemClock,
    log: pino({ level: 'warn' }, pino.destination(2)),
    onEvicted: () => undefined,
    onPruned: () => undefined,
    onDamaged: () => undefined,
    onTagChanged: () => undefined,
  });
  try {
    return await work(targetOf(store, () => config));
  } finally {
    await store.close();
  }
}

/** Prevents that a mistyped path creates a new store. */
export function mustExist(path: string): void {
  if (!existsSync(blobsPath(path))) throw new Error(`${path}: no store here; check store.path`);
}
