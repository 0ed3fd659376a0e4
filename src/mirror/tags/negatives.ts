import { LRUCache } from 'lru-cache';
import type { Clock } from '../../util/clock.ts';
import { toMirrorError, type MirrorError } from '../../util/errors.ts';
import type { TagPolicy } from './freshness.ts';

const maxRemembered = 10_000;

/** The upstream's definite noes, remembered for seconds and bounded in number. Nothing else counts as absence. */
export class Negatives {
  readonly #noes: LRUCache<string, MirrorError>;
  readonly #policy: () => TagPolicy;

  constructor(policy: () => TagPolicy, clock: Clock) {
    this.#policy = policy;
    this.#noes = new LRUCache({
      max: maxRemembered,
      perf: { now: () => clock.monotonic() },
      ttlResolution: 0,
    });
  }

  /** Throws the no that is remembered for the key, else does the work and remembers its definite no. */
  async remember<T>(key: string, work: () => Promise<T>): Promise<T> {
    const no = this.#noes.get(key);
    if (no) throw no;
    try {
      return await work();
    } catch (error) {
      this.#note(key, toMirrorError(error));
      throw error;
    }
  }

  #note(key: string, error: MirrorError): void {
    const { negativeTtlMs } = this.#policy();
    if (error.row.definite && negativeTtlMs > 0) this.#noes.set(key, error, { ttl: negativeTtlMs });
  }
}
