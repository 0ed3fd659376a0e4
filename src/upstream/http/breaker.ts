import { LRUCache } from 'lru-cache';
import type { Clock } from '../../util/clock.ts';
import { MirrorError, type Fault } from '../../util/errors.ts';

/**
 * The result of a call: a response; a 5xx; no connection or response (`failed`); a host timeout (`silent`); the
 * caller's deadline passed (`late`); the caller left (`unknown`); or the host's rate limit.
 */
export type Outcome = 'answered' | 'server-error' | 'failed' | 'silent' | 'late' | 'unknown' | Limited;

/** The host limits all requests. */
export interface Limited {
  readonly retryAfterMs: number | undefined;
}

/** Reports the call's outcome, once. */
export type ReportOutcome = (outcome: Outcome) => void;

export type BreakerFault = Extract<Fault, 'upstream-down' | 'upstream-timeout' | 'upstream-limited'>;

const failuresToOpen = 5;
const firstHoldMs = 500;
const longestHoldMs = 5000;
const firstLimitedHoldMs = 1000;
const longestLimitedHoldMs = 60_000;
/** How long a call waits for a running probe. */
const probePatienceMs = 500;
/** A probe that takes longer no longer blocks the next one. */
const probeMs = 5000;
/** A request whose probe failed lets others probe first: the failure may be its own. */
const probeYieldMs = 1000;
/** How long after its hold the circuit still counts as open in metrics, if no call was made. */
const metricsHoldMs = 30_000;
/** A missed deadline counts as the host's silence if the call took this long, and this many times the usual latency. */
const minSilenceMs = 250;
const silenceFactor = 5;

interface OpenState {
  readonly fault: BreakerFault;
  /** By the monotonic clock. */
  until: number;
}

interface Probe {
  readonly startedAt: number;
  /** Resolves when the probe ends, or others should wait no longer. */
  readonly waitable: Promise<void>;
  readonly end: () => void;
}

interface AdmittedCall {
  readonly what: string;
  readonly era: number;
  readonly startedAt: number;
  readonly role: 'usual' | 'bypassing' | Probe;
}

/**
 * The circuit breaker of one host. Five consecutive failures, silence or a rate limit on all requests open the
 * circuit. After a hold that grows with each failure, it lets one probe at a time through; a response closes it.
 */
export class Breaker {
  readonly #host: string;
  readonly #clock: Clock;
  readonly #onChange: (host: string, fault: BreakerFault | undefined) => void;
  #openState: OpenState | undefined;
  /** Consecutive calls without a response. */
  #failures = 0;
  /** Calls that got 5xx since the last good response: a call that fails repeatedly counts once. */
  readonly #serverErrors = new Set<string>();
  /** How often the circuit opened since the last response. */
  #timesOpened = 0;
  /** Incremented on each change: calls started before it do not count. */
  #era = 0;
  #answeredAt = -Infinity;
  /** Moving average of response times, in ms. */
  #averageMs = 0;
  #probe: Probe | undefined;
  #failedProbe = '';

  constructor(host: string, clock: Clock, onChange: (host: string, fault: BreakerFault | undefined) => void) {
    this.#host = host;
    this.#clock = clock;
    this.#onChange = onChange;
  }

  get isOpen(): boolean {
    return this.#openState !== undefined && this.#clock.monotonic() < this.#openState.until + metricsHoldMs;
  }

  /** The fault that calls to this host get, if the last calls had no good response. */
  get lastFault(): BreakerFault | undefined {
    return (
      this.#openState?.fault ?? (this.#failures + this.#serverErrors.size > 0 ? 'upstream-down' : undefined)
    );
  }

  /**
   * Admits a call. Throws the fault of an open circuit. `bypassesBreaker`: resumed downloads pace their own retries,
   * so only a rate limit stops them.
   */
  async admit(what: string, bypassesBreaker: boolean): Promise<ReportOutcome> {
    for (let waited = false; this.#openState; waited = true) {
      const openState = this.#openState;
      if (this.#mayProbe(what, openState)) return this.#admit(what, this.#newProbe());
      if (bypassesBreaker && openState.fault !== 'upstream-limited') return this.#admit(what, 'bypassing');
      if (!this.#probe || waited) throw this.#refusal(what, openState);
      await this.#probe.waitable;
    }
    return this.#admit(what, 'usual');
  }

  #mayProbe(what: string, { until }: OpenState): boolean {
    const now = this.#clock.monotonic();
    if (now < until || (what === this.#failedProbe && now < until + probeYieldMs)) return false;
    return !this.#probe || now - this.#probe.startedAt >= probeMs;
  }

  #newProbe(): Probe {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    const timer = setTimeout(resolve, probePatienceMs, undefined).unref();
    const end = (): void => {
      clearTimeout(timer);
      resolve(undefined);
    };
    this.#probe = { startedAt: this.#clock.monotonic(), waitable: promise, end };
    return this.#probe;
  }

  #refusal(what: string, { fault, until }: OpenState): MirrorError {
    const waitMs = Math.max(1000, until - this.#clock.monotonic());
    const why = {
      'upstream-down': 'has been failing',
      'upstream-timeout': 'has been timing out',
      'upstream-limited': 'limits all requests',
    }[fault];
    return new MirrorError(
      fault,
      `${what}: not sent, since ${this.#host} ${why}; next try in ${Math.ceil(waitMs / 1000)} s`,
      { retryAfterMs: waitMs, notAsked: true },
    );
  }

  #admit(what: string, role: AdmittedCall['role']): ReportOutcome {
    const call = { what, role, era: this.#era, startedAt: this.#clock.monotonic() };
    return (outcome) => {
      this.#settle(outcome, call);
      if (typeof role === 'string') return;
      if (this.#probe === role) this.#probe = undefined;
      role.end();
    };
  }

  #settle(outcome: Outcome, { what, role, era, startedAt }: AdmittedCall): void {
    const tookMs = this.#clock.monotonic() - startedAt;
    if (typeof outcome === 'object') {
      this.#limit(outcome, era);
      return;
    }
    // Calls started before the last change prove nothing.
    if (outcome === 'unknown' || era !== this.#era) return;
    if (outcome === 'answered') {
      this.#averageMs += (tookMs - this.#averageMs) / 8;
      this.#reset();
      return;
    }
    const isSilent =
      outcome === 'silent' ||
      (outcome === 'late' && tookMs >= Math.max(minSilenceMs, silenceFactor * this.#averageMs));
    if (outcome === 'late' && !isSilent) return;
    // Others got a response meanwhile, so the host is not silent.
    if (isSilent && this.#answeredAt > startedAt) return;
    if (role === 'usual') this.#failed(what, outcome, isSilent);
    else if (role !== 'bypassing') {
      this.#failedProbe = what;
      this.#trip(isSilent ? 'upstream-timeout' : 'upstream-down');
    }
  }

  #failed(what: string, outcome: Outcome, isSilent: boolean): void {
    if (isSilent) {
      this.#trip('upstream-timeout');
      return;
    }
    if (outcome === 'server-error') this.#serverErrors.add(what);
    else this.#failures += 1;
    if (this.#failures + this.#serverErrors.size >= failuresToOpen) this.#trip('upstream-down');
  }

  #limit({ retryAfterMs }: Limited, era: number): void {
    if (era === this.#era || this.#openState?.fault !== 'upstream-limited') {
      this.#trip('upstream-limited', retryAfterMs);
    } else if (retryAfterMs !== undefined) {
      // Parallel 429s count once; the longest wait applies.
      this.#openState.until = Math.max(this.#openState.until, this.#clock.monotonic() + retryAfterMs);
    }
  }

  #trip(fault: BreakerFault, retryAfterMs?: number): void {
    const before = this.#openState?.fault;
    const isLimit = fault === 'upstream-limited';
    if (before !== undefined && (before === 'upstream-limited') !== isLimit) this.#timesOpened = 0;
    const hold = isLimit
      ? // Jitter: other mirrors were limited at the same moment.
        Math.min(firstLimitedHoldMs * 2 ** this.#timesOpened, longestLimitedHoldMs) * (1 + Math.random() / 4)
      : Math.min(firstHoldMs * 2 ** this.#timesOpened, longestHoldMs);
    this.#timesOpened += 1;
    this.#era += 1;
    this.#openState = { fault, until: this.#clock.monotonic() + (retryAfterMs ?? hold) };
    if (before !== fault) this.#onChange(this.#host, fault);
  }

  #reset(): void {
    this.#failures = 0;
    this.#serverErrors.clear();
    this.#answeredAt = this.#clock.monotonic();
    if (!this.#openState) return;
    this.#openState = undefined;
    this.#timesOpened = 0;
    this.#era += 1;
    this.#failedProbe = '';
    this.#onChange(this.#host, undefined);
  }
}

/** The circuit breakers of all hosts that one upstream leads to: the registry, its token server, its CDNs. */
export class Breakers {
  readonly #clock: Clock;
  readonly #onChange: (host: string, fault: BreakerFault | undefined) => void;
  readonly #breakers: LRUCache<string, Breaker>;

  constructor(
    clock: Clock,
    maxHosts: number,
    onChange: (host: string, fault: BreakerFault | undefined) => void,
  ) {
    this.#clock = clock;
    this.#onChange = onChange;
    this.#breakers = new LRUCache({ max: maxHosts });
  }

  of({ origin, host }: URL): Breaker {
    let breaker = this.#breakers.get(origin);
    if (!breaker) {
      breaker = new Breaker(host, this.#clock, this.#onChange);
      this.#breakers.set(origin, breaker);
    }
    return breaker;
  }

  /** The fault that calls to this host get, if it has no good response. */
  lastFault(origin: string): BreakerFault | undefined {
    return this.#breakers.peek(origin)?.lastFault;
  }

  /** The number of open circuits among the matching origins. */
  countOpen(match: (origin: string) => boolean): number {
    let count = 0;
    for (const [origin, breaker] of this.#breakers.entries()) if (breaker.isOpen && match(origin)) count += 1;
    return count;
  }
}
