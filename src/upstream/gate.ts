import { LRUCache } from 'lru-cache';
import type { Clock } from '../util/clock.ts';
import { MirrorError, type Fault } from '../util/errors.ts';

/** What a call to a host has shown of it; `unknown`: the caller left before it could show anything. */
export type Outcome =
  | 'answered'
  | 'failed'
  | 'silent'
  | 'unknown'
  | { readonly limited: true; readonly retryAfterMs: number | undefined };

/** To be told, once, what became of the call. */
export type Pass = (outcome: Outcome) => void;

export type GateFault = Extract<Fault, 'upstream-down' | 'upstream-timeout' | 'upstream-limited'>;

const failuresToShut = 5;
const firstHoldMs = 500;
const longestHoldMs = 5000;
const firstLimitedHoldMs = 1000;
const longestLimitedHoldMs = 60_000;
/** Who comes while a probe is under way waits so long for it: a host that is back answers sooner. */
const probePatienceMs = 500;
const maxGates = 1000;

interface Shut {
  readonly fault: GateFault;
  /** By the monotonic clock. */
  until: number;
}

/**
 * Whether one host may be asked now. Five failures one after the other, silence towards everybody, or a limit on all
 * requests shut it; it opens by one call at a time, which is let through after a while that grows with each that fails.
 */
export class Gate {
  readonly #host: string;
  readonly #clock: Clock;
  readonly #onChange: (host: string, fault: GateFault | undefined) => void;
  #shut: Shut | undefined;
  /** One after the other. */
  #failures = 0;
  /** How often it has been shut without an answer in between. */
  #times = 0;
  /** Calls that began before the last change prove nothing. */
  #era = 0;
  #answeredAt = -Infinity;
  #probe: { readonly soon: Promise<void>; readonly over: () => void } | undefined;

  constructor(host: string, clock: Clock, onChange: (host: string, fault: GateFault | undefined) => void) {
    this.#host = host;
    this.#clock = clock;
    this.#onChange = onChange;
  }

  get fault(): GateFault | undefined {
    return this.#shut?.fault;
  }

  /**
   * Throws the fault that shuts it. `insists`: a download that has begun tries again at a pace of its own, and is stopped
   * by a limit alone.
   */
  async enter(what: string, insists: boolean): Promise<Pass> {
    for (let waited = false; this.#shut; waited = true) {
      const shut = this.#shut;
      const passes = insists && shut.fault !== 'upstream-limited';
      if (this.#clock.monotonic() >= shut.until && !this.#probe) return this.#probing();
      if (passes) return this.#insisting();
      if (this.#clock.monotonic() < shut.until || waited) throw this.#refusal(what, shut);
      await this.#probe?.soon;
    }
    return this.#watched();
  }

  #refusal(what: string, { fault, until }: Shut): MirrorError {
    const waitMs = Math.max(1000, until - this.#clock.monotonic());
    const why = {
      'upstream-down': 'has not been answering',
      'upstream-timeout': 'keeps silent',
      'upstream-limited': 'limits all our requests',
    }[fault];
    return new MirrorError(
      fault,
      `${what}: not asked, since ${this.#host} ${why}; it is asked again in ${Math.ceil(waitMs / 1000)} s`,
      { retryAfterMs: waitMs, refused: true },
    );
  }

  #watched(): Pass {
    const era = this.#era;
    const startedAt = this.#clock.monotonic();
    return (outcome) => {
      if (outcome === 'unknown') return;
      if (typeof outcome === 'object') this.#limit(outcome.retryAfterMs, era);
      else if (era !== this.#era) return;
      else if (outcome === 'answered') this.#answered();
      else {
        this.#failures += 1;
        // Silence towards one call, while others are answered, is no more than a failure.
        if (outcome === 'silent' && this.#answeredAt <= startedAt) this.#close('upstream-timeout');
        else if (this.#failures >= failuresToShut) this.#close('upstream-down');
      }
    };
  }

  #probing(): Pass {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    const timer = setTimeout(resolve, probePatienceMs, undefined).unref();
    const probe = {
      soon: promise.then(() => undefined),
      over: () => {
        clearTimeout(timer);
        resolve(undefined);
      },
    };
    this.#probe = probe;
    return (outcome) => {
      if (this.#probe === probe) this.#probe = undefined;
      if (outcome === 'answered') this.#open();
      else if (typeof outcome === 'object') this.#limit(outcome.retryAfterMs, this.#era);
      else if (outcome !== 'unknown')
        this.#close(outcome === 'silent' ? 'upstream-timeout' : 'upstream-down');
      probe.over();
    };
  }

  #insisting(): Pass {
    return (outcome) => {
      if (outcome === 'answered' && this.#shut?.fault !== 'upstream-limited') this.#open();
      else if (typeof outcome === 'object') this.#limit(outcome.retryAfterMs, this.#era);
    };
  }

  #answered(): void {
    this.#failures = 0;
    this.#answeredAt = this.#clock.monotonic();
  }

  #limit(retryAfterMs: number | undefined, era: number): void {
    // Of many that are refused together one counts.
    if (this.#shut?.fault !== 'upstream-limited' || era === this.#era) {
      this.#close('upstream-limited', retryAfterMs);
    } else if (retryAfterMs !== undefined) {
      this.#shut.until = Math.max(this.#shut.until, this.#clock.monotonic() + retryAfterMs);
    }
  }

  #close(fault: GateFault, retryAfterMs?: number): void {
    const before = this.#shut?.fault;
    if (before !== undefined && (before === 'upstream-limited') !== (fault === 'upstream-limited'))
      this.#times = 0;
    const hold =
      fault === 'upstream-limited'
        ? // Jitter: other mirrors have been refused in the same moment.
          Math.min(firstLimitedHoldMs * 2 ** this.#times, longestLimitedHoldMs) * (1 + Math.random() / 4)
        : Math.min(firstHoldMs * 2 ** this.#times, longestHoldMs);
    this.#times += 1;
    this.#era += 1;
    this.#shut = { fault, until: this.#clock.monotonic() + (retryAfterMs ?? hold) };
    if (before !== fault) this.#onChange(this.#host, fault);
  }

  #open(): void {
    this.#answered();
    if (!this.#shut) return;
    this.#shut = undefined;
    this.#times = 0;
    this.#era += 1;
    this.#onChange(this.#host, undefined);
  }
}

/** The gates of all hosts that one upstream leads to: the registry, its token server, its CDNs. */
export class Gates {
  readonly #clock: Clock;
  readonly #onChange: (host: string, fault: GateFault | undefined) => void;
  readonly #gates = new LRUCache<string, Gate>({ max: maxGates });

  constructor(clock: Clock, onChange: (host: string, fault: GateFault | undefined) => void) {
    this.#clock = clock;
    this.#onChange = onChange;
  }

  of({ origin, host }: URL): Gate {
    let gate = this.#gates.get(origin);
    if (!gate) {
      gate = new Gate(host, this.#clock, this.#onChange);
      this.#gates.set(origin, gate);
    }
    return gate;
  }

  /** How many are shut, of those that `match`. */
  shut(match: (origin: string) => boolean): number {
    let count = 0;
    for (const [origin, gate] of this.#gates.entries()) if (gate.fault && match(origin)) count += 1;
    return count;
  }
}
