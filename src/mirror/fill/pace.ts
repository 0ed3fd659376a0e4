import type { Clock } from '../../util/clock.ts';

/** A download below this rate over `measureMs` yields its connections. */
const slowBytesPerSecond = 16 * 1024;
const measureMs = 4000;

/** Whether a download's connections transfer enough to be worth holding. */
export class Pace {
  readonly #clock: Clock;
  /** By the monotonic clock. */
  #measuredAt: number;
  #bytes = 0;
  #wasSlow = false;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#measuredAt = clock.monotonic();
  }

  /** Below the minimum rate over the last seconds. */
  get isSlow(): boolean {
    const elapsedMs = this.#clock.monotonic() - this.#measuredAt;
    return elapsedMs >= measureMs && (this.#bytes / elapsedMs) * 1000 < slowBytesPerSecond;
  }

  /** Was slow when it last yielded a connection, and has not caught up since. */
  get wasSlow(): boolean {
    return this.#wasSlow;
  }

  /** First connection: time without a connection does not count. */
  connected(): void {
    this.#measuredAt = this.#clock.monotonic();
    this.#bytes = 0;
  }

  /** A connection is being taken back. */
  yielding(): void {
    this.#wasSlow = this.isSlow;
  }

  /** Counts received bytes; older ones count for less. */
  add(bytes: number): void {
    const now = this.#clock.monotonic();
    if (now - this.#measuredAt >= 2 * measureMs) {
      this.#measuredAt = now - measureMs;
      this.#bytes /= 2;
    }
    this.#bytes += bytes;
    if (this.#wasSlow && this.#bytes > (slowBytesPerSecond * measureMs) / 1000) this.#wasSlow = false;
  }
}
