import type { Clock } from '../../util/clock.ts';
import type { MirrorError } from '../../util/errors.ts';

const firstDelayMs = 100;
const firstDelayWhenLimitedMs = 1000;
const longestDelayMs = 5000;
/** Before the first response, clients are better served by a fault than by silence. */
const triesAtOpening = 4;

/** Schedules retries: limited by count before the first response, later by the time without progress. */
export class Retries {
  readonly #clock: Clock;
  readonly #giveUpAfterMs: number;
  #failures = 0;
  #opened = false;
  /** Start of the current series of failures, by the monotonic clock. */
  #failingSince: number | undefined;

  constructor(clock: Clock, giveUpAfterMs: number) {
    this.#clock = clock;
    this.#giveUpAfterMs = giveUpAfterMs;
  }

  /** Bytes have been received. */
  progress(): void {
    this.#opened = true;
    this.#failingSince = undefined;
  }

  /** Delay in ms before the next try; `hasReceived`: the failed try received bytes. Undefined: give up. */
  after({ row, fault, retryAfterMs = 0, notAsked }: MirrorError, hasReceived: boolean): number | undefined {
    this.#failures = hasReceived ? 1 : this.#failures + 1;
    this.#failingSince ??= this.#clock.monotonic();
    const mayRetry = this.#opened
      ? row.resume && this.#clock.monotonic() - this.#failingSince <= this.#giveUpAfterMs
      : row.retry && !notAsked && this.#failures < triesAtOpening;
    if (!mayRetry) return undefined;
    const first = fault === 'upstream-limited' ? firstDelayWhenLimitedMs : firstDelayMs;
    const delay = Math.min(first * 2 ** (this.#failures - 1), longestDelayMs);
    // Jitter: other clients of the upstream were cut off at the same moment.
    return Math.max(delay * (0.5 + Math.random() / 2), Math.min(retryAfterMs, this.#giveUpAfterMs));
  }
}
