import { setTimeout as sleep } from 'node:timers/promises';
import type { Config } from '../config/types.ts';
import { blobPath } from '../store/disk/layout.ts';
import { Verifier } from '../store/ingest/verifier.ts';
import type { StoredBlob } from '../store/operations/inventory.ts';
import { findDamage } from '../store/upkeep/check.ts';
import { formatSize } from '../util/units.ts';
import { perform, withReader } from './perform.ts';

const progressEveryMs = 200;
/** A running mirror removes an evicted blob's file and row within this time. */
const evictionMs = 2000;
/** Digests per call. */
const quarantineBatch = 1000;

export interface Verified {
  readonly blobs: number;
  readonly bytes: number;
  readonly damaged: readonly (StoredBlob & { readonly why: string })[];
}

/** Reads and hashes every stored blob, also while a mirror is running. Shows progress on a terminal. */
export async function verify(config: Config): Promise<Verified> {
  const suspects: StoredBlob[] = [];
  const damaged: (StoredBlob & { why: string })[] = [];
  let blobs = 0;
  let bytes = 0;
  const verifier = new Verifier();
  const look = (blob: StoredBlob, onRead: (bytes: number) => void): Promise<string | undefined> =>
    findDamage(verifier, blobPath(config.store.path, blob.digest), blob, onRead);
  await withReader(config, async ({ inventory }) => {
    const progress = progressBar(inventory.totals().bytes);
    for (const blob of inventory.blobs()) {
      const why = await look(blob, (read) => {
        bytes += read;
        progress.show(bytes, suspects.length);
      });
      blobs += 1;
      if (why !== undefined) suspects.push(blob);
    }
    // A running mirror does not remove file and row atomically: check suspects again later.
    if (suspects.length > 0) await sleep(evictionMs);
    for (const blob of suspects) {
      if (!inventory.has(blob.digest)) continue;
      const why = await look(blob, () => undefined);
      if (why !== undefined && inventory.has(blob.digest)) damaged.push({ ...blob, why });
    }
    progress.clear();
  }).finally(() => verifier.close());
  return { damaged, blobs, bytes };
}

/** Quarantines damaged blobs, so that they are fetched again on request. Resolves to their number. */
export async function repair(config: Config, { damaged }: Verified): Promise<number> {
  let quarantined = 0;
  for (let at = 0; at < damaged.length; at += quarantineBatch) {
    const digests = damaged.slice(at, at + quarantineBatch).map(({ digest }) => digest);
    const { result } = await perform(config, 'quarantine', { digests });
    quarantined += (result as { quarantined: number }).quarantined;
  }
  return quarantined;
}

function progressBar(total: number): { show(bytes: number, damaged: number): void; clear(): void } {
  const { stderr } = process;
  let shownAt = 0;
  return {
    show: (bytes, damaged) => {
      const now = performance.now();
      if (!stderr.isTTY || now - shownAt < progressEveryMs) return;
      shownAt = now;
      const share = Math.min(1, bytes / Math.max(1, total));
      const bar = '#'.repeat(Math.round(30 * share)).padEnd(30);
      stderr.write(`\r[${bar}] ${Math.floor(100 * share)} % of ${formatSize(total)}, ${damaged} damaged `);
    },
    clear: () => {
      if (stderr.isTTY) stderr.write('\r\x1b[K');
    },
  };
}
