import { isDeepStrictEqual } from 'node:util';
import type { Config } from '../config/types.ts';
import { Serial } from '../util/serial.ts';

/** What a listener has prepared for a new configuration. */
export interface Prepared {
  /** Takes it over. Does not throw. */
  apply(): void;
  /** The configuration was refused by another listener. */
  discard?(): void;
}

/** Rejects a configuration that cannot be used. */
type Listener = (next: Config, now: Config) => Prepared | Promise<Prepared>;

/**
 * The current configuration. Components read it through views at each use, or listen for changes. Keys that need a
 * restart keep their initial values.
 */
export class LiveConfig {
  #now: Config;
  readonly #listeners: Listener[] = [];
  readonly #replacing = new Serial();

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

  /** Applies a new configuration, or rejects and changes nothing. Resolves to the changed keys that need a restart. */
  replace(next: Config): Promise<string[]> {
    return this.#replacing.run(() => this.#replace(next));
  }

  async #replace(next: Config): Promise<string[]> {
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
    const prepared: Prepared[] = [];
    try {
      for (const listener of this.#listeners) prepared.push(await listener(config, now));
    } catch (error) {
      for (const each of prepared) each.discard?.();
      throw error;
    }
    this.#now = config;
    for (const each of prepared) each.apply();
    return unchanged.flatMap(([key, isSame]) => (isSame ? [] : [key]));
  }
}
