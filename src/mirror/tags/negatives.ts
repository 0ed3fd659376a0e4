import { LRUCache } from 'lru-cache';
import type { Clock } from '../../util/clock.ts';
import type { MirrorError } from '../../util/errors.ts';
import type { TagPolicy } from './freshness.ts';

const maxRemembered = 10_000;

/** Definite noes, for seconds and bounded in number: nothing else is remembered as absence. */
export class Negatives {
  readonly #noes: LRUCache<string, MirrorError>;
  readonly #policy: Pick<TagPolicy, 'negativeTtlMs'>;

  constructor(policy: Pick<TagPolicy, 'negativeTtlMs'>, clock: Clock) {
    this.#policy = policy;
    this.#noes = new LRUCache({
      max: maxRemembered,
      perf: { now: () => clock.monotonic() },
      ttlResolution: 0,
    });
  }

  /** Throws the no that is remembered for this key. */
  check(key: string): void {
    const no = this.#noes.get(key);
    if (no) throw no;
  }

  /** Remembers what is a definite no, and passes on every fault. */
  note(key: string, error: MirrorError): void {
    const { negativeTtlMs } = this.#policy;
    if (error.row.definite && negativeTtlMs > 0) this.#noes.set(key, error, { ttl: negativeTtlMs });
  }
}
