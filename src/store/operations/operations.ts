import { isDigest } from '../../oci/digest.ts';
import { patternOf } from '../../oci/pattern.ts';
import { OperationError } from '../../util/errors.ts';
import type { BlobStore } from '../blob-store.ts';
import type { Pin } from '../room/pins.ts';
import { findDamage } from '../upkeep/check.ts';
import { importRegistry, type Imported } from './import.ts';
import { previewPurge, purge, type Purged } from './purge.ts';

/** What an operator may ask of a store, of a running mirror or of the files alone. */
export interface StoreOperations {
  pins(): Promise<readonly Pin[]>;
  /** Resolves to the bytes that are pinned then. Throws `OperationError`. */
  pin(pattern: string): Promise<{ pinnedBytes: number }>;
  unpin(pattern: string): Promise<{ pinnedBytes: number }>;
  purge(pattern: string, dryRun: boolean): Promise<Purged>;
  /** Puts aside what was found wrong; resolves to how many there were. */
  quarantine(digests: readonly string[]): Promise<{ quarantined: number }>;
  import(directory: string, registry: string): Promise<Imported>;
}

/** `registries`: the upstreams that are configured. */
export function storeOperations(store: BlobStore, registries: () => readonly string[]): StoreOperations {
  const mustBeWhole = (): void => {
    try {
      store.catalog.expectUndamaged();
    } catch (error) {
      throw new OperationError((error as Error).message);
    }
  };
  return {
    pins: () => Promise.resolve(store.pins.list()),
    async pin(pattern) {
      mustBeWhole();
      return { pinnedBytes: await store.pins.pin(pattern) };
    },
    async unpin(pattern) {
      mustBeWhole();
      return { pinnedBytes: await store.pins.unpin(pattern) };
    },
    async purge(pattern, dryRun) {
      const parsed = patternOf(pattern);
      mustBeWhole();
      return dryRun ? previewPurge(store.catalog, parsed) : purge(store, parsed);
    },
    async quarantine(digests) {
      mustBeWhole();
      let quarantined = 0;
      for (const digest of digests) {
        const held = isDigest(digest) ? store.describe(digest) : undefined;
        // It may have been fetched again since it was found.
        const why =
          held && (await findDamage(store.verifier, store.pathOf(held.digest), held, () => undefined));
        if (!held || why === undefined) continue;
        await store.quarantine(held.digest, why);
        quarantined += 1;
      }
      return { quarantined };
    },
    async import(directory, registry) {
      if (!registries().includes(registry)) {
        throw new OperationError(
          `${registry}: not among the configured upstreams, ${registries().join(', ')}`,
        );
      }
      mustBeWhole();
      try {
        return await importRegistry(store, directory, registry);
      } catch (error) {
        throw new OperationError((error as Error).message);
      }
    },
  };
}
