import { setTimeout as sleep } from 'node:timers/promises';
import type { Digest } from '../../oci/digest.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Clock } from '../../util/clock.ts';
import type { Catalog } from '../catalog/catalog.ts';
import type { Verifier } from '../ingest/verifier.ts';
import { findDamage } from './check.ts';

export interface ScrubContext {
  readonly catalog: Catalog;
  readonly clock: Clock;
  readonly storedBytes: () => number;
  readonly pathOf: (digest: Digest) => string;
  readonly verifier: Verifier;
  /** Whether blobs are being read or fetched: the scrub waits. */
  readonly isBusy: () => boolean;
  readonly onDamaged: (digest: Digest, why: string) => Promise<void>;
  readonly log: Logger;
}

const busyWaitMs = 1000;
/** Longest wait before each step: a store that is always busy is scrubbed slowly. */
const maxWaitMs = 60_000;
const minBytesPerSecond = 64 * 1024;
const retryMs = 60_000;
const batchSize = 100;
const noteName = 'scrub';

/**
 * Re-verifies all stored blobs, slowly and while the store is idle: once in `everyMs` (0: never). Finds damage before
 * a client does.
 */
export class Scrubber {
  readonly #everyMs: () => number;
  readonly #context: ScrubContext;

  constructor(everyMs: () => number, context: ScrubContext) {
    this.#everyMs = everyMs;
    this.#context = context;
  }

  /** Runs until the signal aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const isClosing = (): boolean => signal.aborted;
    while (!isClosing()) {
      try {
        if (this.#everyMs() > 0) await this.#round(signal);
        else await this.#sleep(retryMs, signal);
      } catch (error) {
        if (isClosing()) return;
        this.#context.log.warn({ err: error }, 'the scrub failed; it resumes in a minute');
        await this.#sleep(retryMs, signal).catch(() => undefined);
      }
    }
  }

  /** One pass over all blobs, from the saved position; then waits until the next is due. */
  async #round(signal: AbortSignal): Promise<void> {
    const { catalog, clock } = this.#context;
    // The position survives restarts.
    const [savedStart = '', savedPosition = ''] = catalog.notes.get(noteName)?.split(' ') ?? [];
    const startedAt = savedPosition === '' ? clock.now() : Number(savedStart);
    for (let position = savedPosition; ;) {
      const blobs = catalog.blobs.after(position, batchSize);
      for (const blob of blobs) {
        await this.#verify(blob, signal);
        if (this.#everyMs() === 0) return;
      }
      position = blobs.at(-1)?.digest ?? '';
      catalog.notes.set(noteName, `${startedAt} ${position}`);
      if (position === '') break;
    }
    while (clock.now() < startedAt + this.#everyMs())
      await this.#sleep(Math.min(retryMs, this.#everyMs() / 10), signal);
  }

  async #verify(blob: { digest: Digest; size: number }, signal: AbortSignal): Promise<void> {
    const { verifier, pathOf, onDamaged } = this.#context;
    const why = await findDamage(verifier, pathOf(blob.digest), blob, (bytes) => this.#pace(bytes, signal));
    if (why !== undefined) await onDamaged(blob.digest, why);
  }

  async #pace(bytes: number, signal: AbortSignal): Promise<void> {
    const { storedBytes, isBusy } = this.#context;
    signal.throwIfAborted();
    for (let waited = 0; isBusy() && waited < maxWaitMs; waited += busyWaitMs)
      await this.#sleep(busyWaitMs, signal);
    const bytesPerSecond = Math.max(minBytesPerSecond, storedBytes() / (this.#everyMs() / 1000));
    await this.#sleep((bytes / bytesPerSecond) * 1000, signal);
  }

  async #sleep(ms: number, signal: AbortSignal): Promise<void> {
    await sleep(ms, undefined, { signal, ref: false });
  }
}
