import { setTimeout as sleep } from 'node:timers/promises';
import type { Digest } from '../../oci/digest.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Verifier } from '../ingest/verifier.ts';
import { findDamage } from './check.ts';

export interface ScrubContext {
  /** In the order of digests, after one that was given before. */
  readonly blobsAfter: (digest: string, count: number) => { digest: Digest; size: number }[];
  readonly storedBytes: () => number;
  readonly pathOf: (digest: Digest) => string;
  readonly verifier: Verifier;
  /** Somebody reads or writes: it waits. */
  readonly isBusy: () => boolean;
  readonly onDamaged: (digest: Digest, why: string) => Promise<void>;
  /** Where it stands outlives the process. */
  readonly load: () => string | undefined;
  readonly save: (position: string) => void;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  readonly log: Logger;
}

const busyWaitMs = 1000;
/** Whoever is always busy is scrubbed all the same, slowly. */
const longestBusyMs = 60_000;
const leastBytesPerSecond = 64 * 1024;
const againMs = 60_000;
const atOnce = 100;

/**
 * Reads the whole store again, slowly and when nobody else does: once in `everyMs`, all over. What is wrong is found before
 * somebody wants it.
 */
export class Scrubber {
  readonly #everyMs: number;
  readonly #context: ScrubContext;

  constructor(everyMs: number, context: ScrubContext) {
    this.#everyMs = everyMs;
    this.#context = context;
  }

  /** Until the signal ends it. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const isOver = (): boolean => signal.aborted;
    while (!isOver()) {
      try {
        await this.#round(signal);
      } catch (error) {
        if (isOver()) return;
        this.#context.log.warn({ err: error }, 'the scrub stopped; it goes on in a minute');
        await this.#rest(againMs, signal).catch(() => undefined);
      }
    }
  }

  /** Once through all, from where it stands; and then until it is time for the next. */
  async #round(signal: AbortSignal): Promise<void> {
    const { load, save, blobsAfter, now } = this.#context;
    const [begun = '', stands = ''] = load()?.split(' ') ?? [];
    const beganAt = stands === '' ? now() : Number(begun);
    for (let position = stands; ;) {
      const blobs = blobsAfter(position, atOnce);
      for (const blob of blobs) await this.#look(blob, signal);
      position = blobs.at(-1)?.digest ?? '';
      save(`${beganAt} ${position}`);
      if (position === '') break;
    }
    while (now() < beganAt + this.#everyMs) await this.#rest(Math.min(againMs, this.#everyMs / 10), signal);
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
    const bytesPerSecond = Math.max(leastBytesPerSecond, storedBytes() / (this.#everyMs / 1000));
    await this.#rest((bytes / bytesPerSecond) * 1000, signal);
  }

  async #rest(ms: number, signal: AbortSignal): Promise<void> {
    await sleep(ms, undefined, { signal, ref: false });
  }
}
