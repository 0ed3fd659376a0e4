import { LRUCache } from 'lru-cache';
import type { Clock } from '../../util/clock.ts';
import { MirrorError, type Fault } from '../../util/errors.ts';

/**
 * What a call to a host has shown of it: an answer; an 5xx; no answer; no answer in
 * the time that it has; or, when its caller's deadline passed (`late`) or its caller left (`unknown`), perhaps nothing.
 */
export type Outcome = 'answered' | 'server-error' | 'failed' | 'silent' | 'late' | 'unknown' | Limited;

/** All requests are limited. */
export interface Limited {
  readonly retryAfterMs: number | undefined;
}

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
/** A probe that takes longer gives its place to the next one. */
const probeMs = 5000;
/** As long whoever probed in vain lets others go first: it may be what it asks for that fails. */
const courtesyMs = 1000;
/** After that it counts as open in metrics, though nobody has tried. */
const shownMs = 30_000;
/** A deadline that passes is the host's silence if the call took that long, and so many times what others take. */
const leastSilenceMs = 250;
const silenceFactor = 5;

interface Shut {
  readonly fault: GateFault;
  /** By the monotonic clock. */
  until: number;
}

interface Probe {
  readonly startedAt: number;
  /** It is over, or takes longer than others should wait. */
  readonly soon: Promise<void>;
  readonly end: () => void;
}

interface Entered {
  readonly what: string;
  readonly era: number;
  readonly startedAt: number;
  readonly role: 'usual' | 'bypassing' | Probe;
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
  /** Calls without an answer, one after the other. */
  #failures = 0;
  /** What was answered with 5xx since anything was answered well: one thing that fails again and again counts once. */
  readonly #serverErrors = new Set<string>();
  /** How often it has been shut without an answer in between. */
  #times = 0;
  /** Calls that began before the last change prove nothing. */
  #era = 0;
  #answeredAt = -Infinity;
  /** How long answers take. */
  #usualMs = 0;
  #probe: Probe | undefined;
  #probedInVain = '';

  constructor(host: string, clock: Clock, onChange: (host: string, fault: GateFault | undefined) => void) {
    this.#host = host;
    this.#clock = clock;
    this.#onChange = onChange;
  }

  get isShut(): boolean {
    return this.#shut !== undefined && this.#clock.monotonic() < this.#shut.until + shownMs;
  }

  /** What became of the last calls, if none of them was answered well. */
  get unanswered(): GateFault | undefined {
    return this.#shut?.fault ?? (this.#failures + this.#serverErrors.size > 0 ? 'upstream-down' : undefined);
  }

  /**
   * Throws the fault that shuts it. `bypassesBreaker`: a download that has begun tries again at a pace of its own, and is stopped
   * by a limit alone.
   */
  async enter(what: string, bypassesBreaker: boolean): Promise<Pass> {
    for (let waited = false; this.#shut; waited = true) {
      const shut = this.#shut;
      if (this.#mayProbe(what, shut)) return this.#enter(what, this.#newProbe());
      if (bypassesBreaker && shut.fault !== 'upstream-limited') return this.#enter(what, 'bypassing');
      if (!this.#probe || waited) throw this.#notNow(what, shut);
      await this.#probe.soon;
    }
    return this.#enter(what, 'usual');
  }

  #mayProbe(what: string, { until }: Shut): boolean {
    const now = this.#clock.monotonic();
    if (now < until || (what === this.#probedInVain && now < until + courtesyMs)) return false;
    return !this.#probe || now - this.#probe.startedAt >= probeMs;
  }

  #newProbe(): Probe {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    const timer = setTimeout(resolve, probePatienceMs, undefined).unref();
    const end = (): void => {
      clearTimeout(timer);
      resolve(undefined);
    };
    this.#probe = { startedAt: this.#clock.monotonic(), soon: promise, end };
    return this.#probe;
  }

  #notNow(what: string, { fault, until }: Shut): MirrorError {
    const waitMs = Math.max(1000, until - this.#clock.monotonic());
    const why = {
      'upstream-down': 'has not been answering',
      'upstream-timeout': 'keeps silent',
      'upstream-limited': 'limits all our requests',
    }[fault];
    return new MirrorError(
      fault,
      `${what}: not asked, since ${this.#host} ${why}; it is asked again in ${Math.ceil(waitMs / 1000)} s`,
      { retryAfterMs: waitMs, notAsked: true },
    );
  }

  #enter(what: string, role: Entered['role']): Pass {
    const entered = { what, role, era: this.#era, startedAt: this.#clock.monotonic() };
    return (outcome) => {
      this.#settle(outcome, entered);
      if (typeof role === 'string') return;
      if (this.#probe === role) this.#probe = undefined;
      role.end();
    };
  }

  #settle(outcome: Outcome, { what, role, era, startedAt }: Entered): void {
    const tookMs = this.#clock.monotonic() - startedAt;
    if (typeof outcome === 'object') {
      this.#limit(outcome, era);
      return;
    }
    // What has begun before the last change proves nothing.
    if (outcome === 'unknown' || era !== this.#era) return;
    if (outcome === 'answered') {
      this.#usualMs += (tookMs - this.#usualMs) / 8;
      this.#open();
      return;
    }
    const isSilent =
      outcome === 'silent' ||
      (outcome === 'late' && tookMs >= Math.max(leastSilenceMs, silenceFactor * this.#usualMs));
    if (outcome === 'late' && !isSilent) return;
    // Silence towards one call while others are answered says nothing about the host.
    if (isSilent && this.#answeredAt > startedAt) return;
    if (role === 'usual') this.#failed(what, outcome, isSilent);
    else if (role !== 'bypassing') {
      this.#probedInVain = what;
      this.#close(isSilent ? 'upstream-timeout' : 'upstream-down');
    }
  }

  #failed(what: string, outcome: Outcome, isSilent: boolean): void {
    if (isSilent) {
      this.#close('upstream-timeout');
      return;
    }
    if (outcome === 'server-error') this.#serverErrors.add(what);
    else this.#failures += 1;
    if (this.#failures + this.#serverErrors.size >= failuresToShut) this.#close('upstream-down');
  }

  #limit({ retryAfterMs }: Limited, era: number): void {
    if (era === this.#era || this.#shut?.fault !== 'upstream-limited') {
      this.#close('upstream-limited', retryAfterMs);
    } else if (retryAfterMs !== undefined) {
      // Of many that are limited together one counts.
      this.#shut.until = Math.max(this.#shut.until, this.#clock.monotonic() + retryAfterMs);
    }
  }

  #close(fault: GateFault, retryAfterMs?: number): void {
    const before = this.#shut?.fault;
    const isLimit = fault === 'upstream-limited';
    if (before !== undefined && (before === 'upstream-limited') !== isLimit) this.#times = 0;
    const hold = isLimit
      ? // Jitter: other mirrors have been limited in the same moment.
        Math.min(firstLimitedHoldMs * 2 ** this.#times, longestLimitedHoldMs) * (1 + Math.random() / 4)
      : Math.min(firstHoldMs * 2 ** this.#times, longestHoldMs);
    this.#times += 1;
    this.#era += 1;
    this.#shut = { fault, until: this.#clock.monotonic() + (retryAfterMs ?? hold) };
    if (before !== fault) this.#onChange(this.#host, fault);
  }

  #open(): void {
    this.#failures = 0;
    this.#serverErrors.clear();
    this.#answeredAt = this.#clock.monotonic();
    if (!this.#shut) return;
    this.#shut = undefined;
    this.#times = 0;
    this.#era += 1;
    this.#probedInVain = '';
    this.#onChange(this.#host, undefined);
  }
}

/** The gates of all hosts that one upstream leads to: the registry, its token server, its CDNs. */
export class Gates {
  readonly #clock: Clock;
  readonly #onChange: (host: string, fault: GateFault | undefined) => void;
  readonly #gates: LRUCache<string, Gate>;

  constructor(
    clock: Clock,
    maxHosts: number,
    onChange: (host: string, fault: GateFault | undefined) => void,
  ) {
    this.#clock = clock;
    this.#onChange = onChange;
    this.#gates = new LRUCache({ max: maxHosts });
  }

  of({ origin, host }: URL): Gate {
    let gate = this.#gates.get(origin);
    if (!gate) {
      gate = new Gate(host, this.#clock, this.#onChange);
      this.#gates.set(origin, gate);
    }
    return gate;
  }

  /** Why this host does not answer, if it is known that it does not. */
  unanswered(origin: string): GateFault | undefined {
    return this.#gates.peek(origin)?.unanswered;
  }

  /** How many are shut, of those that `match`. */
  shut(match: (origin: string) => boolean): number {
    let count = 0;
    for (const [origin, gate] of this.#gates.entries()) if (gate.isShut && match(origin)) count += 1;
    return count;
  }
}
