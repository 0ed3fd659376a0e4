import { isDeepStrictEqual } from 'node:util';
import type { Config } from '../config/types.ts';

/** Checks what is to come; what it returns takes it over, and does not throw. */
type Listener = (next: Config, now: Config) => (() => void) | undefined;

/**
 * The configuration as it is now. Who needs a part of it takes a view and reads it at each use; who has to do something when it
 * changes listens. What cannot change while the mirror runs stays as it was at the start.
 */
export class LiveConfig {
  #now: Config;
  readonly #listeners: Listener[] = [];

  constructor(config: Config) {
    this.#now = config;
  }

  get now(): Config {
    return this.#now;
  }

  /** A part of it, made once for each configuration. */
  view<T>(part: (config: Config) => T): () => T {
    let madeOf: Config | undefined;
    let made: T;
    return () => {
      if (madeOf !== this.#now) {
        madeOf = this.#now;
        made = part(madeOf);
      }
      return made;
    };
  }

  onChange(listener: Listener): void {
    this.#listeners.push(listener);
  }

  /**
   * Takes over what may change. Returns the keys that have changed and need a restart. Throws when it cannot be used: then nothing
   * changes.
   */
  replace(next: Config): string[] {
    const now = this.#now;
    const hasSameTls = !next.tls === !now.tls && !next.tls?.clientCa === !now.tls?.clientCa;
    const config: Config = {
      ...next,
      listen: now.listen,
      adminListen: now.adminListen,
      store: { ...next.store, path: now.store.path },
      tls: hasSameTls ? next.tls : now.tls,
    };
    const waiting = Object.entries({
      listen: isDeepStrictEqual(next.listen, now.listen),
      adminListen: isDeepStrictEqual(next.adminListen, now.adminListen),
      'store.path': next.store.path === now.store.path,
      tls: hasSameTls,
    });
    const takeOver = this.#listeners.map((listener) => listener(config, now));
    this.#now = config;
    for (const apply of takeOver) apply?.();
    return waiting.flatMap(([key, isSame]) => (isSame ? [] : [key]));
  }
}
