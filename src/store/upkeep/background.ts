import type { Logger } from '../../telemetry/log.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { isCorrupt } from '../catalog/damage.ts';

/** Background work and timers of a store. */
export class Background {
  readonly #catalog: Catalog;
  readonly #log: Logger;
  readonly #pending = new Set<Promise<unknown>>();
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #closing = new AbortController();

  constructor(catalog: Catalog, log: Logger) {
    this.#catalog = catalog;
    this.#log = log;
  }

  /** Aborts when the store closes. */
  get signal(): AbortSignal {
    return this.#closing.signal;
  }

  /** Closing the store waits for `work`. */
  track<T>(work: Promise<T>): Promise<T> {
    this.#pending.add(work);
    const done = (): void => void this.#pending.delete(work);
    work.then(done, done);
    return work;
  }

  /** Runs `work` without a caller waiting for it: errors are logged. */
  detach(work: Promise<unknown>, what: string): void {
    this.track(work).catch((error: unknown) => {
      if (this.signal.aborted || (this.#catalog.connection.isDamaged && isCorrupt(error))) return;
      this.#log.error({ err: error }, `${what} failed`);
    });
  }

  /** Calls `work` periodically until the store closes. */
  every(ms: number, work: () => void): void {
    this.#timers.push(setInterval(work, ms).unref());
  }

  /** Stops the timers, and aborts the signal. */
  stop(): void {
    for (const timer of this.#timers) clearInterval(timer);
    this.#closing.abort();
  }

  /** Resolves when all tracked work has ended. */
  async ended(): Promise<void> {
    while (this.#pending.size > 0) await Promise.allSettled(this.#pending);
  }
}
