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
const longestBusyMs = 60_000;
const leastBytesPerSecond = 64 * 1024;
const againMs = 60_000;
const atOnce = 100;
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
    const isOver = (): boolean => signal.aborted;
    while (!isOver()) {
      try {
        if (this.#everyMs() > 0) await this.#round(signal);
        else await this.#rest(againMs, signal);
      } catch (error) {
        if (isOver()) return;
        this.#context.log.warn({ err: error }, 'the scrub failed; it resumes in a minute');
        await this.#rest(againMs, signal).catch(() => undefined);
      }
    }
  }

  /** One pass over all blobs, from the saved position; then waits until the next is due. */
  async #round(signal: AbortSignal): Promise<void> {
    const { catalog, clock } = this.#context;
    // The position survives restarts.
    const [begun = '', stands = ''] = catalog.notes.get(noteName)?.split(' ') ?? [];
    const beganAt = stands === '' ? clock.now() : Number(begun);
    for (let position = stands; ;) {
      const blobs = catalog.blobs.after(position, atOnce);
      for (const blob of blobs) {
        await this.#look(blob, signal);
        if (this.#everyMs() === 0) return;
      }
      position = blobs.at(-1)?.digest ?? '';
      catalog.notes.set(noteName, `${beganAt} ${position}`);
      if (position === '') break;
    }
    while (clock.now() < beganAt + this.#everyMs())
      await this.#rest(Math.min(againMs, this.#everyMs() / 10), signal);
  }

  async #look(blob: { digest: Digest; size: number }, signal: AbortSignal): Promise<void> {
    const { verifier, pathOf, onDamaged } = this.#context;
    const why = await findDamage(verifier, pathOf(blob.digest), blob, (bytes) => this.#pace(bytes, signal));
    if (why !== undefined) await onDamaged(blob.digest, why);
  }

  async #pace(bytes: number, signal: AbortSignal): Promise<void> {
    const { storedBytes, isBusy } = this.#context;
    signal.throwIfAborted();
    for (let waited = 0; isBusy() && waited < longestBusyMs; waited += busyWaitMs)
      await this.#rest(busyWaitMs, signal);
    const bytesPerSecond = Math.max(leastBytesPerSecond, storedBytes() / (this.#everyMs() / 1000));
    await this.#rest((bytes / bytesPerSecond) * 1000, signal);
  }

  async #rest(ms: number, signal: AbortSignal): Promise<void> {
    await sleep(ms, undefined, { signal, ref: false });
  }
}
