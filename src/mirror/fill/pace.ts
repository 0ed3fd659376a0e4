import type { Clock } from '../../util/clock.ts';

/** A download that brings less than this over that time gives way to others. */
const slowBytesPerSecond = 16 * 1024;
const measureMs = 4000;

/** Whether a download's connections bring enough bytes to be worth having. */
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

  /** It has brought hardly anything in the last seconds. */
  get isSlow(): boolean {
    const elapsedMs = this.#clock.monotonic() - this.#measuredAt;
    return elapsedMs >= measureMs && (this.#bytes / elapsedMs) * 1000 < slowBytesPerSecond;
  }

  /** It was slow when it last gave a connection back, and has not brought enough since. */
  get wasSlow(): boolean {
    return this.#wasSlow;
  }

  /** It has its first connection: what it could not bring without one does not count against it. */
  connected(): void {
    this.#measuredAt = this.#clock.monotonic();
    this.#bytes = 0;
  }

  /** It is asked to give a connection back. */
  yielding(): void {
    this.#wasSlow = this.isSlow;
  }

  /** What came lately counts, not what came once. */
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
