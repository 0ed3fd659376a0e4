import type { Logger } from '../../telemetry/log.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { isCorrupt } from '../catalog/damage.ts';

/** What a store does by itself: work that nobody waits for but its close, and timers. */
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

  /** A close waits for it. */
  track<T>(work: Promise<T>): Promise<T> {
    this.#pending.add(work);
    const done = (): void => void this.#pending.delete(work);
    work.then(done, done);
    return work;
  }

  /** Nobody else waits for it: what goes wrong with it is in the log. */
  behind(work: Promise<unknown>, what: string): void {
    this.track(work).catch((error: unknown) => {
      if (this.signal.aborted || (this.#catalog.connection.isDamaged && isCorrupt(error))) return;
      this.#log.error({ err: error }, `${what} failed`);
    });
  }

  /** Until the store closes. */
  every(ms: number, work: () => void): void {
    this.#timers.push(setInterval(work, ms).unref());
  }

  /** Nothing begins by itself any more, and what goes on is to end early. */
  stop(): void {
    for (const timer of this.#timers) clearInterval(timer);
    this.#closing.abort();
  }

  /** Resolves when nothing goes on. */
  async ended(): Promise<void> {
    while (this.#pending.size > 0) await Promise.allSettled(this.#pending);
  }
}
