import type { Clock } from '../../util/clock.ts';
import type { QuotaState } from '../../util/quota-state.ts';
import { headerOf, retryAfterOf, type Headers } from '../http/headers.ts';

/** A request to the upstream that is in progress. */
export interface Ticket {
  readonly isPull: boolean;
  readonly startedAt: number;
  /** `#changes` at the start, to detect other pulls meanwhile; undefined if another pull was in progress already. */
  readonly changesIfAlone: number | undefined;
}

const defaultWindowMs = 6 * 60 * 60_000;
const shortestWindowMs = 1000;
const longestWindowMs = 7 * 24 * 60 * 60_000;
const probeEveryMs = 60_000;
/** After a probe without a result. */
const probeRetryMs = 5000;
const firstDistrustMs = 60_000;
/** Without rate-limit headers, a 429 may have another reason. */
const firstDistrustUncountedMs = 1000;
const longestDistrustMs = 60 * 60_000;
const longestUncountedMs = 60_000;
const rateWindowMs = 15 * 60_000;

/**
 * Pulls that one account has left: the upstream's rate-limit headers less the pulls since. A pull is subtracted before
 * it is sent. A higher figure is accepted only from a response during which no pull was in progress, since a late
 * response carries an older figure.
 */
export class Quota {
  readonly #clock: Clock;
  #limit: number | undefined;
  /** Pulls in progress are subtracted already; undefined: no rate-limit headers seen. */
  #remaining: number | undefined;
  #windowMs = defaultWindowMs;
  #source = '';
  #risenAt = 0;
  #observedAt = -Infinity;
  #probedAt = -Infinity;
  #inProgress = 0;
  /** Number of pull starts and ends. */
  #changes = 0;
  /** The last refusal of a pull, until pulls are available again. */
  #refusal:
    | {
        readonly at: number;
        readonly backAt: number;
        readonly distrustUntil: number;
        /** `backAt` is from the upstream's Retry-After. */
        readonly hasRetryAfter: boolean;
      }
    | undefined;
  /** Consecutive refusals. */
  #refusals = 0;
  /** Recent pulls, exponentially decayed. */
  #recentPulls = 0;
  #recentAt = 0;
  /** The registry has answered a manifest request, in this run or a saved one. */
  isObserved = false;
  /** Has unsaved changes. */
  dirty = false;

  constructor(clock: Clock, saved?: QuotaState) {
    this.#clock = clock;
    const age = saved ? clock.now() - saved.observedAt : Infinity;
    // A window without an observation restores all pulls.
    if (!saved || age < 0 || age >= saved.windowMs) return;
    const toMonotonic = (then: number): number => clock.monotonic() - (clock.now() - then);
    this.isObserved = true;
    this.#limit = saved.limit;
    this.#remaining = saved.remaining;
    this.#windowMs = saved.windowMs;
    this.#source = saved.source;
    this.#risenAt = toMonotonic(saved.risenAt);
    this.#observedAt = toMonotonic(saved.observedAt);
    if (saved.backAt === null) return;
    const now = clock.monotonic();
    const backAt = Math.min(toMonotonic(saved.backAt), now + saved.windowMs);
    this.#refusal = { at: this.#observedAt, backAt, distrustUntil: now, hasRetryAfter: false };
  }

  get limit(): number | undefined {
    return this.#limit;
  }

  /** For metrics: the upstream's figure once all pulls in progress are counted. */
  get remaining(): number | undefined {
    return this.#remaining === undefined ? undefined : Math.max(0, this.#remaining);
  }

  get source(): string {
    return this.#source;
  }

  get windowMs(): number {
    return this.#windowMs;
  }

  /** Pulls that may be sent now; Infinity if not limited, as far as known. */
  get left(): number {
    this.#expire();
    const remaining = this.remaining ?? Infinity;
    const refusal = this.#refusal;
    if (!refusal || (this.#limit !== undefined && remaining > 0)) return remaining;
    // No figures, or none without a pull: one trial pull after `backAt`.
    const isTrialDue = this.#clock.monotonic() >= refusal.backAt && this.#observedAt < refusal.backAt;
    if (this.#limit !== undefined && !refusal.hasRetryAfter) return remaining;
    return isTrialDue && this.#inProgress === 0 ? 1 : 0;
  }

  /** No pulls left, or only a trial pull. */
  get isSpent(): boolean {
    return this.left === 0 || (this.#limit === undefined && this.#refusal !== undefined);
  }

  /** Milliseconds until pulls may be available; undefined while there are some. */
  get backInMs(): number | undefined {
    if (this.left > 0) return undefined;
    const wait = this.#backAt - this.#clock.monotonic();
    return wait > 0 ? wait : probeEveryMs;
  }

  get #backAt(): number {
    return this.#refusal?.backAt ?? this.#risenAt + this.#windowMs;
  }

  /** Pulls are spent, and the upstream's figure is a minute old or older than `backAt`: a HEAD should refresh it. */
  get isProbeDue(): boolean {
    if (this.left > 0 || this.#limit === undefined) return false;
    const now = this.#clock.monotonic();
    if (now < (this.#refusal?.distrustUntil ?? -Infinity)) return false;
    if (now - this.#probedAt < probeRetryMs) return false;
    return now - this.#observedAt >= probeEveryMs || (this.#observedAt < this.#backAt && this.#backAt <= now);
  }

  markProbed(): void {
    this.#probedAt = this.#clock.monotonic();
  }

  /** Milliseconds until no pulls are left at the recent rate; Infinity if there are no recent pulls. */
  get exhaustedInMs(): number {
    const rate = this.#decayed() / rateWindowMs;
    return this.left === 0 ? 0 : rate < 1e-9 ? Infinity : this.left / rate;
  }

  /** State to save; undefined until rate-limit headers were seen. */
  get state(): QuotaState | undefined {
    if (this.#limit === undefined) return undefined;
    const toEpoch = (then: number): number =>
      Math.round(this.#clock.now() - (this.#clock.monotonic() - then));
    return {
      limit: this.#limit,
      remaining: this.remaining ?? 0,
      windowMs: this.#windowMs,
      source: this.#source,
      risenAt: toEpoch(this.#risenAt),
      observedAt: toEpoch(this.#observedAt),
      backAt: this.#refusal ? toEpoch(this.#refusal.backAt) : null,
    };
  }

  begin(isPull: boolean): Ticket {
    const isAlone = this.#inProgress === 0;
    const startedAt = this.#clock.monotonic();
    if (isPull) {
      this.#inProgress += 1;
      this.#changes += 1;
      if (this.#remaining !== undefined) this.#remaining -= 1;
      this.#recentPulls = this.#decayed() + 1;
      this.#recentAt = startedAt;
      this.dirty = true;
    }
    return { isPull, startedAt, changesIfAlone: isAlone ? this.#changes : undefined };
  }

  /** The request never reached the upstream. */
  unsent(ticket: Ticket): void {
    this.#end(ticket);
    if (ticket.isPull) this.#giveBack();
  }

  /** The request failed; whether the upstream counted it is unknown. */
  failed(ticket: Ticket): void {
    this.#end(ticket);
  }

  /** `isSpent`: the response says that the pull limit is reached. */
  answered(ticket: Ticket, status: number, headers: Headers, isSpent: boolean): void {
    const isAlone = ticket.changesIfAlone === this.#changes;
    this.#end(ticket);
    const remaining = parseFigure(headerOf(headers, 'ratelimit-remaining'));
    const limit = parseFigure(headerOf(headers, 'ratelimit-limit'));
    if (remaining) {
      this.#observe(ticket, remaining.figure, isAlone);
      this.#limit = limit?.figure ?? this.#limit ?? remaining.figure;
      this.#windowMs = limit?.windowMs ?? remaining.windowMs ?? this.#windowMs;
      this.#source = headerOf(headers, 'docker-ratelimit-source') ?? '';
      this.#observedAt = this.#clock.monotonic();
      this.dirty = true;
    } else if (ticket.isPull && status < 500 && !isSpent) this.#giveBack();
    if (isSpent) this.#refused(ticket, headers);
    else if (ticket.isPull && status === 200 && ticket.startedAt > (this.#refusal?.at ?? -Infinity)) {
      this.#refusals = 0;
      this.#refusal = undefined;
    }
  }

  #end({ isPull }: Ticket): void {
    if (!isPull) return;
    this.#inProgress -= 1;
    this.#changes += 1;
  }

  /** Returns a pull that was not counted: responses for uncounted images and for 404 carry no figures. */
  #giveBack(): void {
    if (this.#remaining === undefined) return;
    this.#remaining = Math.min(this.#limit ?? Infinity, this.#remaining + 1);
    this.dirty = true;
  }

  #observe({ startedAt }: Ticket, figure: number, isAlone: boolean): void {
    const now = this.#clock.monotonic();
    if (this.#remaining === undefined) {
      this.#risenAt = now;
      this.#remaining = figure - this.#inProgress;
    } else if (figure <= this.#remaining) this.#remaining = figure;
    else if (isAlone && startedAt >= (this.#refusal?.distrustUntil ?? -Infinity)) {
      this.#risenAt = now;
      this.#remaining = figure;
      this.#refusal = undefined;
    }
  }

  #refused({ startedAt }: Ticket, headers: Headers): void {
    // Parallel refusals count once.
    if (startedAt <= (this.#refusal?.at ?? -Infinity)) return;
    const now = this.#clock.monotonic();
    const firstMs = this.#limit === undefined ? firstDistrustUncountedMs : firstDistrustMs;
    const longestMs = this.#limit === undefined ? longestUncountedMs : longestDistrustMs;
    const distrustMs = Math.min(firstMs * 2 ** this.#refusals, longestMs);
    this.#refusals += 1;
    // Without figures, the upstream may be a mirror that was refused once: allow one trial pull a minute.
    const maxRetryAfterMs = this.#limit === undefined ? longestUncountedMs : this.#windowMs;
    const retryAfterMs = retryAfterOf(headers, this.#clock.now(), maxRetryAfterMs);
    const windowEnd = this.#limit === undefined ? now : this.#risenAt + this.#windowMs;
    this.#refusal = {
      at: now,
      backAt: retryAfterMs === undefined ? Math.max(windowEnd, now + distrustMs) : now + retryAfterMs,
      distrustUntil: now + Math.min(distrustMs, retryAfterMs ?? distrustMs),
      hasRetryAfter: retryAfterMs !== undefined,
    };
    if (this.#remaining !== undefined) this.#remaining = Math.min(0, this.#remaining);
    this.dirty = true;
  }

  /** Forgets figures older than a window: by then all pulls are available again. */
  #expire(): void {
    if (this.#limit === undefined || this.#clock.monotonic() - this.#observedAt < this.#windowMs) return;
    this.#limit = undefined;
    this.#remaining = undefined;
    this.#refusal = undefined;
    this.dirty = true;
  }

  #decayed(): number {
    return this.#recentPulls * Math.exp((this.#recentAt - this.#clock.monotonic()) / rateWindowMs);
  }
}

/** Parses `100;w=21600`; undefined if invalid. */
function parseFigure(
  header: string | undefined,
): { figure: number; windowMs: number | undefined } | undefined {
  const [, figure, seconds] = /^\s*(\d{1,9})\s*(?:;\s*w=(\d{1,9}))?\s*(?:[;,].*)?$/.exec(header ?? '') ?? [];
  if (figure === undefined) return undefined;
  const windowMs = Math.min(longestWindowMs, Math.max(shortestWindowMs, Number(seconds) * 1000));
  return { figure: Number(figure), windowMs: seconds === undefined ? undefined : windowMs };
}
