import { isDeepStrictEqual } from 'node:util';
import type { Config } from '../config/types.ts';

/** Validates the next configuration, and may throw. The returned function applies it, and must not throw. */
type Listener = (next: Config, now: Config) => (() => void) | undefined;

/**
 * The current configuration. Components read it through views at each use, or listen for changes. Keys that need a
 * restart keep their initial values.
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

  /** A getter of a derived value, computed once per configuration. */
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

  /** Applies a new configuration, or throws and changes nothing. Returns the changed keys that need a restart. */
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
    const unchanged = Object.entries({
      listen: isDeepStrictEqual(next.listen, now.listen),
      adminListen: isDeepStrictEqual(next.adminListen, now.adminListen),
      'store.path': next.store.path === now.store.path,
      tls: hasSameTls,
    });
    const applies = this.#listeners.map((listener) => listener(config, now));
    this.#now = config;
    for (const apply of applies) apply?.();
    return unchanged.flatMap(([key, isSame]) => (isSame ? [] : [key]));
  }
}
