import { LRUCache } from 'lru-cache';
import type { Clock } from '../../util/clock.ts';
import { toMirrorError, type MirrorError } from '../../util/errors.ts';
import type { TagPolicy } from './freshness.ts';

const maxRemembered = 10_000;

/**
 * The upstream's definite negative answers, cached for `negativeTtl` and bounded in number. No other fault counts as
 * absence.
 */
export class Negatives {
  readonly #cached: LRUCache<string, MirrorError>;
  readonly #policy: () => TagPolicy;

  constructor(policy: () => TagPolicy, clock: Clock) {
    this.#policy = policy;
    this.#cached = new LRUCache({
      max: maxRemembered,
      perf: { now: () => clock.monotonic() },
      ttlResolution: 0,
    });
  }

  /** Throws the negative answer cached for the key; else does the work, and caches its definite negative answer. */
  async unlessKnownAbsent<T>(key: string, work: () => Promise<T>): Promise<T> {
    const cached = this.#cached.get(key);
    if (cached) throw cached;
    try {
      return await work();
    } catch (error) {
      this.#note(key, toMirrorError(error));
      throw error;
    }
  }

  #note(key: string, error: MirrorError): void {
    const { negativeTtlMs } = this.#policy();
    if (error.row.definite && negativeTtlMs > 0) this.#cached.set(key, error, { ttl: negativeTtlMs });
  }
}
