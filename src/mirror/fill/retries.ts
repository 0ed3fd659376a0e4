import type { Clock } from '../../util/clock.ts';
import type { MirrorError } from '../../util/errors.ts';

const firstDelayMs = 100;
const firstDelayWhenLimitedMs = 1000;
const longestDelayMs = 5000;
/** Before anybody has been answered it is better to answer with a fault than to be silent. */
const triesAtOpening = 4;

/**
 * When to try again, for as long as that makes sense: bounded by tries at first, later by the time in which every try has
 * failed.
 */
export class Retries {
  readonly #clock: Clock;
  readonly #giveUpAfterMs: number;
  #failures = 0;
  #opened = false;
  /** Since when every try has failed, by the monotonic clock. */
  #failingSince: number | undefined;

  constructor(clock: Clock, giveUpAfterMs: number) {
    this.#clock = clock;
    this.#giveUpAfterMs = giveUpAfterMs;
  }

  /** Something has come, by this try or another. */
  progress(): void {
    this.#opened = true;
    this.#failingSince = undefined;
  }

  /** How long to wait after this failure of a try that had, or had not, brought something; undefined: give up. */
  after({ row, fault, retryAfterMs = 0, notAsked }: MirrorError, hasBrought: boolean): number | undefined {
    this.#failures = hasBrought ? 1 : this.#failures + 1;
    this.#failingSince ??= this.#clock.monotonic();
    const again = this.#opened
      ? row.resume && this.#clock.monotonic() - this.#failingSince <= this.#giveUpAfterMs
      : row.retry && !notAsked && this.#failures < triesAtOpening;
    if (!again) return undefined;
    const first = fault === 'upstream-limited' ? firstDelayWhenLimitedMs : firstDelayMs;
    const delay = Math.min(first * 2 ** (this.#failures - 1), longestDelayMs);
    // Jitter: others have been cut off in the same moment.
    return Math.max(delay * (0.5 + Math.random() / 2), Math.min(retryAfterMs, this.#giveUpAfterMs));
  }
}
