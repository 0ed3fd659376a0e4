import { LRUCache } from 'lru-cache';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Digest } from '../../oci/digest.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Clock } from '../../util/clock.ts';
import type { Verifier } from '../ingest/verifier.ts';
import { findDamage } from './check.ts';

export interface RecheckContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly verifier: Verifier;
  readonly pathOf: (digest: Digest) => string;
  /** Size of a stored blob. */
  readonly sizeOf: (digest: Digest) => number | undefined;
  /** Whether blobs are being read or fetched. */
  readonly isBusy: () => boolean;
  /** A counter of opened blobs. */
  readonly activity: () => number;
  readonly onDamaged: (digest: Digest, why: string) => Promise<void>;
}

/** A client that downloads a blob twice within this time probably found it corrupt. */
const repeatMs = 60_000;
const minIntervalMs = 10 * 60_000;
const maxRemembered = 20_000;
const maxWaiting = 1000;
/** Verification waits until no blob was opened for this long. */
const quietMs = 500;
/** Longest wait before each step: a store that is always busy is verified slowly. */
const maxWaitMs = 10_000;

/**
 * Re-verifies large stored blobs in the background, one at a time: after the first full download since a blob was
 * opened, and when a client downloads it twice within a minute. Each at most once in ten minutes.
 */
export class Recheck {
  readonly #context: RecheckContext;
  readonly #checkedAt = new LRUCache<Digest, number>({ max: maxRemembered });
  /** Last full download, by client and digest. */
  readonly #downloadedAt = new LRUCache<string, number>({ max: maxRemembered });
  readonly #waiting = new Set<Digest>();
  readonly #closing = new AbortController();
  #running: Promise<void> | undefined;
  /** `activity` when it was last read. */
  #lastActivity = -1;

  constructor(context: RecheckContext) {
    this.#context = context;
  }

  /** A client was sent a whole blob; `isFirst`: the first since it was opened. */
  noteFullDownload(digest: Digest, client: string, isFirst: boolean): void {
    const now = this.#context.clock.monotonic();
    const key = `${client} ${digest}`;
    const before = this.#downloadedAt.get(key);
    this.#downloadedAt.set(key, now);
    const isRepeated = before !== undefined && now - before <= repeatMs;
    if (!isFirst && !isRepeated) return;
    if (now - (this.#checkedAt.get(digest) ?? -Infinity) < minIntervalMs) return;
    if (this.#waiting.size >= maxWaiting) return;
    this.#checkedAt.set(digest, now);
    this.#waiting.add(digest);
    this.#running ??= this.#run().finally(() => (this.#running = undefined));
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { log } = this.#context;
    for (const digest of this.#waiting) {
      this.#waiting.delete(digest);
      try {
        await this.#check(digest);
      } catch (error) {
        if (this.#closing.signal.aborted) return;
        log.warn({ err: error, digest }, 'a stored blob could not be re-verified');
      }
    }
  }

  async #check(digest: Digest): Promise<void> {
    const { verifier, pathOf, sizeOf, onDamaged } = this.#context;
    await this.#pace();
    const size = sizeOf(digest);
    if (size === undefined) return;
    const why = await findDamage(verifier, pathOf(digest), { digest, size }, () => this.#pace());
    if (why !== undefined) await onDamaged(digest, why);
  }

  async #pace(): Promise<void> {
    const { signal } = this.#closing;
    signal.throwIfAborted();
    const { isBusy, activity } = this.#context;
    for (let waited = 0; waited < maxWaitMs; waited += quietMs) {
      const isQuiet = !isBusy() && activity() === this.#lastActivity;
      this.#lastActivity = activity();
      if (isQuiet) return;
      await sleep(quietMs, undefined, { signal, ref: false });
    }
  }
}
