import { existsSync } from 'node:fs';
import pino from 'pino';
import type { Config } from '../config/types.ts';
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
 * Does an operation of the table: what only reads, reads the catalog beside whoever works on it; what changes something is asked
 * of the running mirror, or done on the files where none is running.
 */
export async function perform(
  config: Config,
  name: string,
  args: Record<string, unknown>,
): Promise<{ result: unknown; prepared: ReturnType<(typeof operations)[string]['prepare']> }> {
  const operation = operations[name];
  if (!operation) throw new Error(`${name}: no such operation`);
  const prepared = operation.prepare(args);
  const { read, run } = prepared;
  if (read) return { prepared, result: await withReader(config, read) };
  if (!run) throw new Error(`${name}: it can only be read`);
  try {
    return { prepared, result: await withStore(config, run, operation.needsRoom === true) };
  } catch (error) {
    if (!(error instanceof LockedError)) throw error;
    return { prepared, result: await callRunningMirror(config, name, args) };
  }
}

/** Nothing is written, not even beside the catalog. */
export async function withReader<T>({ store }: Config, work: (reader: Reader) => Promise<T>): Promise<T> {
  const { path, maxBytes, pins } = store;
  let inventory: Inventory | undefined;
  let catalog: Catalog | undefined;
  const opened = <O>(open: () => O): O => {
    try {
      return open();
    } catch (error) {
      if (isCorrupt(error)) throw error;
      const cause = error as Error;
      throw new Error(`${path}: no store that can be read (${cause.message})`, { cause });
    }
  };
  const reader: Reader = {
    get inventory() {
      return (inventory ??= opened(() => new Inventory(path)));
    },
    get catalog() {
      return (catalog ??= opened(() => new Catalog(catalogPath(path), { reader: openToRead(path) })));
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

/** Throws `LockedError` while a mirror is running on the store. */
async function withStore<T>(
  config: Config,
  work: (target: Target) => Promise<T>,
  needsRoom: boolean,
): Promise<T> {
  const { path, minFreeBytes, pins } = config.store;
  mustExist(path);
  const maxBytes = needsRoom ? config.store.maxBytes : Infinity;
  const limits = { maxBytes, minFreeBytes, maxIdleMs: 0, pins, scrubEveryMs: 0 };
  // Only what was asked for is changed: nothing is tidied up beside it.
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
    return await work({
      store,
      registries: () => config.upstreams.map(({ registry }) => registry),
      defaultRegistry: () => config.defaultUpstream,
    });
  } finally {
    await store.close();
  }
}

/** A mistyped path must not become a new store. */
export function mustExist(path: string): void {
  if (!existsSync(blobsPath(path))) throw new Error(`${path}: there is no store; check store.path`);
}
