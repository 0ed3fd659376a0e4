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

/** What was found wrong leaves the store, and somebody is told. */
export class Damage implements DamageListener {
  readonly #parts: DamageParts;
  #lostBlobs = 0;
  /** From then on a file that is missing has not been lost in a crash before the start. */
  isReconciled = false;

  constructor(parts: DamageParts) {
    this.#parts = parts;
  }

  /** How many files were missing before directory and catalog agreed again. */
  get lostBlobs(): number {
    return this.#lostBlobs;
  }

  found({ digest }: Descriptor, why: string): void {
    this.#parts.background.behind(this.quarantine(digest, why), 'taking out a damaged blob');
  }

  /** Takes it out of the store, and tells of it. */
  async quarantine(digest: Digest, why: string): Promise<void> {
    const { catalog, deletion, evictor, quarantine, context } = this.#parts;
    const row = catalog.blobs.get(digest);
    if (!row) return;
    const pinnedFor = this.#pinnedFor(digest);
    if (why === missingFile && !this.isReconciled) {
      this.#lostBlobs += 1;
      // A crash comes between the end of a file and that of its row. What is pinned does not go by itself.
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
      // Damage must go, whatever else is wrong.
      return undefined;
    }
  }
}
