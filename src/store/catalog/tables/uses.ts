import type { Digest } from '../../../oci/digest.ts';
import { stepMs } from '../../../util/steps.ts';
import type { Connection } from '../connection.ts';
import { mostUses } from '../worth.ts';

/** A blob that may be evicted. */
export interface Victim {
  readonly digest: Digest;
  /** Bytes. */
  readonly size: number;
  /** Blobs of the lowest priority are evicted first (worth.ts). */
  readonly priority: number;
}

export interface WideManifest extends Victim {
  /** When it was last used (ms since the epoch). */
  readonly usedAt: number;
}

/** So many uses are written in one transaction, which nothing can interrupt. */
const usesAtOnce = 500;

/** When and how often blobs were used, and so which are evicted first. Uses are gathered in memory and written in batches. */
export class Uses {
  readonly #connection: Connection;
  readonly #statements: ReturnType<typeof statementsOf>;
  readonly #unwritten = new Map<Digest, { at: number; count: number }>();
  #inflation: number;

  constructor(connection: Connection) {
    this.#connection = connection;
    this.#statements = statementsOf(connection);
    // No blob that is stored has a lower priority than those that were evicted.
    this.#inflation = this.#statements.leastPriority.get()?.least ?? 0;
  }

  /** The priority of the blob that was evicted last: that of a new blob, and of one that is used, starts above it. */
  get inflation(): number {
    return this.#inflation;
  }

  /** The blob was used. */
  add(digest: Digest, now: number): void {
    const use = this.#unwritten.get(digest);
    if (use) {
      use.at = now;
      use.count += 1;
    } else this.#unwritten.set(digest, { at: now, count: 1 });
  }

  /** The blob is gone: its uses are not written. */
  forget(digest: Digest): void {
    this.#unwritten.delete(digest);
  }

  /** Writes the uses of one blob, so that its priority is right before it is evicted. Returns whether there were any. */
  flushOne(digest: Digest): boolean {
    const use = this.#unwritten.get(digest);
    if (!use) return false;
    this.#unwritten.delete(digest);
    const { at, count } = use;
    this.#statements.use.run({ digest, at, count, inflation: this.#inflation, mostUses });
    return true;
  }

  /**
   * Writes some of the uses: in a large catalog each row takes its time. While the queue waits none is written. Returns whether
   * to call it again for more.
   */
  flush(): boolean {
    if (this.#unwritten.size === 0 || this.#connection.queue.isWaiting) return false;
    const { use } = this.#statements;
    const inflation = this.#inflation;
    const until = performance.now() + stepMs;
    const written: Digest[] = [];
    this.#connection.transaction(() => {
      for (const [digest, { at, count }] of this.#unwritten) {
        use.run({ digest, at, count, inflation, mostUses });
        if (written.push(digest) >= usesAtOnce || performance.now() >= until) break;
      }
    });
    for (const digest of written) this.#unwritten.delete(digest);
    return this.#unwritten.size > 0;
  }

  /** The next `count` blobs of the lowest priority that are not pinned, after one that was given before. */
  leastWorthy(count: number, after: Victim | undefined): Victim[] {
    return this.#statements.leastWorthy.all(after?.priority ?? -1, after?.digest ?? '', count);
  }

  /** Blobs that are not pinned and were not used since `before` (ms since the epoch), the oldest use first. */
  idleSince(before: number, count: number): Victim[] {
    return this.#statements.idleSince.all(before, count);
  }

  /** The next manifests that may have many children and are not pinned, the oldest use first, after one that was given before. */
  wideManifests(count: number, after: WideManifest | undefined): WideManifest[] {
    return this.#statements.wideManifests.all(after?.usedAt ?? -1, after?.digest ?? '', count);
  }

  /** The blob was evicted to make room. */
  evicted({ priority }: Victim): void {
    this.#inflation = Math.max(this.#inflation, priority);
  }
}

interface UseParams {
  readonly digest: Digest;
  readonly at: number;
  readonly count: number;
  readonly inflation: number;
  readonly mostUses: number;
}

function statementsOf(connection: Connection) {
  return {
    use: connection.prepare<[UseParams]>(
      `UPDATE blobs SET used_at = @at, uses = min(@mostUses, uses + @count),
         priority = @inflation + min(@mostUses, uses + @count) * worth
       WHERE digest = @digest`,
    ),
    leastPriority: connection.prepare<[], { least: number }>(
      'SELECT priority AS least FROM blobs WHERE pinned = 0 ORDER BY priority LIMIT 1',
    ),
    leastWorthy: connection.prepare<[number, string, number], Victim>(
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
