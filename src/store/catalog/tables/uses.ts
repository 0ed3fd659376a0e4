import type { Digest } from '../../../oci/digest.ts';
import { stepMs } from '../../../util/steps.ts';
import type { Connection } from '../connection.ts';
import { maxUses } from '../worth.ts';

/** A candidate for eviction. */
export interface Victim {
  readonly digest: Digest;
  /** Bytes. */
  readonly size: number;
  /** Blobs of the lowest priority are evicted first (worth.ts). */
  readonly priority: number;
}

export interface WideManifest extends Victim {
  /** Last use, ms since the epoch. */
  readonly usedAt: number;
}

/** Uses written in one transaction, which blocks the event loop. */
const maxUsesPerBatch = 500;

/** Last use, use count and eviction priority of blobs. Uses are collected in memory and written in batches. */
export class Uses {
  readonly #connection: Connection;
  readonly #statements: ReturnType<typeof statementsOf>;
  readonly #unwritten = new Map<Digest, { at: number; count: number }>();
  #inflation: number;

  constructor(connection: Connection) {
    this.#connection = connection;
    this.#statements = statementsOf(connection);
    // A stored blob has at least the priority of the blob evicted last.
    this.#inflation = this.#statements.minPriority.get()?.least ?? 0;
  }

  /** Priority of the blob evicted last; added to the priority of each new or used blob (aging in GDSF). */
  get inflation(): number {
    return this.#inflation;
  }

  /** Records a use. `now`: ms since the epoch. */
  add(digest: Digest, now: number): void {
    const use = this.#unwritten.get(digest);
    if (use) {
      use.at = now;
      use.count += 1;
    } else this.#unwritten.set(digest, { at: now, count: 1 });
  }

  /** Drops the blob's unwritten uses. */
  forget(digest: Digest): void {
    this.#unwritten.delete(digest);
  }

  /** Writes the blob's uses, so that its priority is current. Returns whether there were any. */
  flushOne(digest: Digest): boolean {
    const use = this.#unwritten.get(digest);
    if (!use) return false;
    this.#unwritten.delete(digest);
    const { at, count } = use;
    this.#statements.use.run({ digest, at, count, inflation: this.#inflation, maxUses });
    return true;
  }

  /** Writes one batch of uses, and none while the write queue waits. Returns whether more remain. */
  flush(): boolean {
    if (this.#unwritten.size === 0 || this.#connection.queue.isWaiting) return false;
    const { use } = this.#statements;
    const inflation = this.#inflation;
    const until = performance.now() + stepMs;
    const written: Digest[] = [];
    this.#connection.transaction(() => {
      for (const [digest, { at, count }] of this.#unwritten) {
        use.run({ digest, at, count, inflation, maxUses });
        if (written.push(digest) >= maxUsesPerBatch || performance.now() >= until) break;
      }
    });
    for (const digest of written) this.#unwritten.delete(digest);
    return this.#unwritten.size > 0;
  }

  /** The next `count` unpinned blobs in ascending priority, after `after`. */
  lowestPriority(count: number, after: Victim | undefined): Victim[] {
    return this.#statements.lowestPriority.all(after?.priority ?? -1, after?.digest ?? '', count);
  }

  /** Unpinned blobs last used before `before` (ms since the epoch), oldest use first. */
  idleSince(before: number, count: number): Victim[] {
    return this.#statements.idleSince.all(before, count);
  }

  /** The next `count` unpinned manifests that may have many children, oldest use first, after `after`. */
  wideManifests(count: number, after: WideManifest | undefined): WideManifest[] {
    return this.#statements.wideManifests.all(after?.usedAt ?? -1, after?.digest ?? '', count);
  }

  /** Call for each blob evicted to free space. */
  evicted({ priority }: Victim): void {
    this.#inflation = Math.max(this.#inflation, priority);
  }
}

interface UseParams {
  readonly digest: Digest;
  readonly at: number;
  readonly count: number;
  readonly inflation: number;
  readonly maxUses: number;
}

function statementsOf(connection: Connection) {
  return {
    use: connection.prepare<[UseParams]>(
      `UPDATE blobs SET used_at = @at, uses = min(@maxUses, uses + @count),
         priority = @inflation + min(@maxUses, uses + @count) * worth
       WHERE digest = @digest`,
    ),
    minPriority: connection.prepare<[], { least: number }>(
      'SELECT priority AS least FROM blobs WHERE pinned = 0 ORDER BY priority LIMIT 1',
    ),
    lowestPriority: connection.prepare<[number, string, number], Victim>(
      `SELECT digest, size, priority FROM blobs WHERE pinned = 0 AND (priority, digest) > (?, ?)
       ORDER BY priority, digest LIMIT ?`,
    ),
    idleSince: connection.prepare<[number, number], Victim>(
      `SELECT digest, size, priority FROM blobs WHERE used_at < ? AND pinned = 0 ORDER BY used_at LIMIT ?`,
    ),
    wideManifests: connection.prepare<[number, string, number], WideManifest>(
      `SELECT digest, size, priority, used_at AS usedAt FROM blobs INDEXED BY blobs_wide
       WHERE size > 16000 AND media_type <> 'application/octet-stream' AND pinned = 0 AND (used_at, digest) > (?, ?)
       ORDER BY used_at, digest LIMIT ?`,
    ),
  };
}
