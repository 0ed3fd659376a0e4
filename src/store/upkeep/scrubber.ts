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
  /** Somebody reads or writes: it waits. */
  readonly isBusy: () => boolean;
  readonly onDamaged: (digest: Digest, why: string) => Promise<void>;
  readonly log: Logger;
}

const busyWaitMs = 1000;
/** Whoever is always busy is scrubbed all the same, slowly. */
const longestBusyMs = 60_000;
const leastBytesPerSecond = 64 * 1024;
const againMs = 60_000;
const atOnce = 100;
const noteName = 'scrub';

/**
 * Reads the whole store again, slowly and when nobody else does: once in `everyMs` (0: not at all), all over. What is wrong is found before
 * somebody wants it.
 */
export class Scrubber {
  readonly #everyMs: () => number;
  readonly #context: ScrubContext;

  constructor(everyMs: () => number, context: ScrubContext) {
    this.#everyMs = everyMs;
    this.#context = context;
  }

  /** Until the signal ends it. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const isOver = (): boolean => signal.aborted;
    while (!isOver()) {
      try {
        if (this.#everyMs() > 0) await this.#round(signal);
        else await this.#rest(againMs, signal);
      } catch (error) {
        if (isOver()) return;
        this.#context.log.warn({ err: error }, 'the scrub stopped; it goes on in a minute');
        await this.#rest(againMs, signal).catch(() => undefined);
      }
    }
  }

  /** Once through all, from where it stands; and then until it is time for the next. */
  async #round(signal: AbortSignal): Promise<void> {
    const { catalog, clock } = this.#context;
    // Where it stands outlives the process.
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
