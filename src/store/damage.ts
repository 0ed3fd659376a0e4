import { unlink } from 'node:fs/promises';
import type { Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { Catalog } from './catalog/catalog.ts';
import type { Damaged, StoreContext } from './context.ts';
import type { Deletion } from './deletion.ts';
import { missingFile } from './disk/files.ts';
import type { DamageListener } from './leases.ts';
import type { Evictor } from './room/evictor.ts';
import type { Quarantine } from './room/quarantine.ts';
import type { Background } from './upkeep/background.ts';

export interface DamageParts {
  readonly background: Background;
  readonly catalog: Catalog;
  readonly deletion: Deletion;
  readonly evictor: Evictor;
  readonly quarantine: Quarantine;
  readonly context: StoreContext;
}

/** Removes corrupt blobs from the store and reports them. */
export class Damage implements DamageListener {
  readonly #parts: DamageParts;
  #lostBlobs = 0;
  /** Set after reconciliation at startup: a file missing later was not lost in a crash. */
  isReconciled = false;

  constructor(parts: DamageParts) {
    this.#parts = parts;
  }

  /** Number of files found missing before reconciliation ended. */
  get lostBlobs(): number {
    return this.#lostBlobs;
  }

  report({ digest }: Descriptor, why: string): void {
    this.#parts.background.detach(this.quarantine(digest, why), 'removing a damaged blob');
  }

  /** Moves the blob's file to quarantine, deletes its row, and reports it. */
  async quarantine(digest: Digest, why: string): Promise<void> {
    const { catalog, deletion, evictor, quarantine, context } = this.#parts;
    const row = catalog.blobs.get(digest);
    if (!row) return;
    const pinnedFor = this.#pinnedFor(digest);
    if (why === missingFile && !this.isReconciled) {
      this.#lostBlobs += 1;
      // After a crash during deletion the row outlives the file. Pinned blobs are never deleted: their loss is
      // reported.
      if (!pinnedFor) {
        await deletion.delete(row);
        return;
      }
    }
    context.log.error({ digest, size: row.size, why }, 'a stored blob is damaged: it will be fetched again');
    await deletion.delete(row, async (path) => {
      try {
        await quarantine.take(path, evictor);
      } catch {
        await unlink(path);
      }
    });
    context.onDamaged({ digest, mediaType: row.mediaType, pinnedFor });
  }

  #pinnedFor(digest: Digest): Damaged['pinnedFor'] {
    const { catalog } = this.#parts;
    try {
      return catalog.pins.isPinned(digest) ? catalog.links.reposOf(digest)[0] : undefined;
    } catch {
      // A corrupt blob is removed even if the catalog is damaged.
      return undefined;
    }
  }
}
