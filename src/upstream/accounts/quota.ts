import type { Clock } from '../../util/clock.ts';
import type { QuotaState } from '../../util/quota-state.ts';
import { one, retryAfterOf, type Headers } from '../http/headers.ts';

/** A call that is under way. */
export interface Ticket {
  readonly isPull: boolean;
  readonly startedAt: number;
  /** The pulls that had begun or ended until it began; undefined when one was under way. */
  readonly alone: number | undefined;
}

const defaultWindowMs = 6 * 60 * 60_000;
const shortestWindowMs = 1000;
const longestWindowMs = 7 * 24 * 60 * 60_000;
const lookEveryMs = 60_000;
/** A look that has shown nothing. */
const lookAgainMs = 5000;
const firstDoubtMs = 60_000;
/** Where nobody has ever counted, a refusal may be of another kind. */
const firstDoubtUncountedMs = 1000;
const longestDoubtMs = 60 * 60_000;
const longestUncountedMs = 60_000;
const rateOverMs = 15 * 60_000;

/**
 * How many pulls one account has left, as the upstream's headers say and as we have spent since. A pull is taken off
 * before it is asked for. A higher figure is believed only from a call during which no pull was under way: a late answer
 * brings an older number.
 */
export class Quota {
  readonly #clock: Clock;
  #limit: number | undefined;
  /** Less what is under way; undefined: nobody counts, as far as we know. */
  #remaining: number | undefined;
  #windowMs = defaultWindowMs;
  #source = '';
  #risenAt = 0;
  #observedAt = -Infinity;
  #lookedAt = -Infinity;
  #underWay = 0;
  /** Pulls that have begun or ended. */
  #changes = 0;
  /** Since the upstream has refused a pull. */
  #refusal:
    | {
        readonly at: number;
        readonly backAt: number;
        readonly doubtedUntil: number;
        /** The upstream has said when. */
        readonly isSaid: boolean;
      }
    | undefined;
  /** One after the other. */
  #refusals = 0;
  /** Pulls of the last minutes, weighed less the older they are. */
  #recent = 0;
  #recentAt = 0;
  /** The registry has answered about a manifest since we run. */
  isTold = false;
  /** Something is to be written down. */
  dirty = false;

  constructor(clock: Clock, saved?: QuotaState) {
    this.#clock = clock;
    const age = saved ? clock.now() - saved.observedAt : Infinity;
    // After a window without a pull all of them are back.
    if (!saved || age < 0 || age >= saved.windowMs) return;
    const here = (then: number): number => clock.monotonic() - (clock.now() - then);
    this.isTold = true;
    this.#limit = saved.limit;
    this.#remaining = saved.remaining;
    this.#windowMs = saved.windowMs;
    this.#source = saved.source;
    this.#risenAt = here(saved.risenAt);
    this.#observedAt = here(saved.observedAt);
    if (saved.backAt === null) return;
    const now = clock.monotonic();
    const backAt = Math.min(here(saved.backAt), now + saved.windowMs);
    this.#refusal = { at: this.#observedAt, backAt, doubtedUntil: now, isSaid: false };
  }

  get limit(): number | undefined {
    return this.#limit;
  }

  /** As a metric: what the upstream would say now, if all that is under way were counted. */
  get remaining(): number | undefined {
    return this.#remaining === undefined ? undefined : Math.max(0, this.#remaining);
  }

  get source(): string {
    return this.#source;
  }

  get windowMs(): number {
    return this.#windowMs;
  }

  /** Pulls that may be spent now. */
  get left(): number {
    this.#expire();
    const remaining = this.remaining ?? Infinity;
    const refusal = this.#refusal;
    if (!refusal || (this.#limit !== undefined && remaining > 0)) return remaining;
    // Nobody tells when they are back, or it is told by pulls alone: one tries.
    const isTime = this.#clock.monotonic() >= refusal.backAt && this.#observedAt < refusal.backAt;
    if (this.#limit !== undefined && !refusal.isSaid) return remaining;
    return isTime && this.#underWay === 0 ? 1 : 0;
  }

  /** None are left, or it is not known that there are: one pull is to show it. */
  get isSpent(): boolean {
    return this.left === 0 || (this.#limit === undefined && this.#refusal !== undefined);
  }

  /** How long until pulls may be back; undefined while there are some. */
  get backInMs(): number | undefined {
    if (this.left > 0) return undefined;
    const wait = this.#backAt - this.#clock.monotonic();
    return wait > 0 ? wait : lookEveryMs;
  }

  get #backAt(): number {
    return this.#refusal?.backAt ?? this.#risenAt + this.#windowMs;
  }

  /** Spent, and nobody has asked for a minute, or since pulls may be back, whether it still is. */
  get isDueForALook(): boolean {
    if (this.left > 0 || this.#limit === undefined) return false;
    const now = this.#clock.monotonic();
    if (now < (this.#refusal?.doubtedUntil ?? -Infinity)) return false;
    if (now - this.#lookedAt < lookAgainMs) return false;
    return now - this.#observedAt >= lookEveryMs || (this.#observedAt < this.#backAt && this.#backAt <= now);
  }

  looks(): void {
    this.#lookedAt = this.#clock.monotonic();
  }

  /** Until none are left at the rate of the last minutes; Infinity when none are being spent. */
  get exhaustedInMs(): number {
    const rate = this.#decayed() / rateOverMs;
    return this.left === 0 ? 0 : rate < 1e-9 ? Infinity : this.left / rate;
  }

  /** Undefined until the upstream has told. */
  get state(): QuotaState | undefined {
    if (this.#limit === undefined) return undefined;
    const there = (then: number): number => Math.round(this.#clock.now() - (this.#clock.monotonic() - then));
    return {
      limit: this.#limit,
      remaining: this.remaining ?? 0,
      windowMs: this.#windowMs,
      source: this.#source,
      risenAt: there(this.#risenAt),
      observedAt: there(this.#observedAt),
      backAt: this.#refusal ? there(this.#refusal.backAt) : null,
    };
  }

  begin(isPull: boolean): Ticket {
    const isAlone = this.#underWay === 0;
    const startedAt = this.#clock.monotonic();
    if (isPull) {
      this.#underWay += 1;
      this.#changes += 1;
      if (this.#remaining !== undefined) this.#remaining -= 1;
      this.#recent = this.#decayed() + 1;
      this.#recentAt = startedAt;
      this.dirty = true;
    }
    return { isPull, startedAt, alone: isAlone ? this.#changes : undefined };
  }

  /** Nothing of it has reached the upstream. */
  returned(ticket: Ticket): void {
    this.#end(ticket);
    if (ticket.isPull) this.#giveBack();
  }

  /** It failed, and whether it was counted is not known. */
  failed(ticket: Ticket): void {
    this.#end(ticket);
  }

  /** `isSpent`: it is the pull limit that refuses. */
  answered(ticket: Ticket, status: number, headers: Headers, isSpent: boolean): void {
    const isAlone = ticket.alone === this.#changes;
    this.#end(ticket);
    const remaining = parseFigure(one(headers, 'ratelimit-remaining'));
    const limit = parseFigure(one(headers, 'ratelimit-limit'));
    if (remaining) {
      this.#told(ticket, remaining.figure, isAlone);
      this.#limit = limit?.figure ?? this.#limit ?? remaining.figure;
      this.#windowMs = limit?.windowMs ?? remaining.windowMs ?? this.#windowMs;
      this.#source = one(headers, 'docker-ratelimit-source') ?? '';
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
    this.#underWay -= 1;
    this.#changes += 1;
  }

  /** Some images are not counted, and what is not there neither: these answers carry no figures. */
  #giveBack(): void {
    if (this.#remaining === undefined) return;
    this.#remaining = Math.min(this.#limit ?? Infinity, this.#remaining + 1);
    this.dirty = true;
  }

  #told({ startedAt }: Ticket, said: number, isAlone: boolean): void {
    const now = this.#clock.monotonic();
    if (this.#remaining === undefined) {
      this.#risenAt = now;
      this.#remaining = said - this.#underWay;
    } else if (said <= this.#remaining) this.#remaining = said;
    else if (isAlone && startedAt >= (this.#refusal?.doubtedUntil ?? -Infinity)) {
      this.#risenAt = now;
      this.#remaining = said;
      this.#refusal = undefined;
    }
  }

  #refused({ startedAt }: Ticket, headers: Headers): void {
    // Of many that are refused together one counts.
    if (startedAt <= (this.#refusal?.at ?? -Infinity)) return;
    const now = this.#clock.monotonic();
    const firstMs = this.#limit === undefined ? firstDoubtUncountedMs : firstDoubtMs;
    const longestMs = this.#limit === undefined ? longestUncountedMs : longestDoubtMs;
    const doubtMs = Math.min(firstMs * 2 ** this.#refusals, longestMs);
    this.#refusals += 1;
    // Where nobody counts, the other side may be a mirror that was refused once: one pull a minute shows how it is.
    const mostMs = this.#limit === undefined ? longestUncountedMs : this.#windowMs;
    const saidMs = retryAfterOf(headers, this.#clock.now(), mostMs);
    const windowEnd = this.#limit === undefined ? now : this.#risenAt + this.#windowMs;
    this.#refusal = {
      at: now,
      backAt: saidMs === undefined ? Math.max(windowEnd, now + doubtMs) : now + saidMs,
      doubtedUntil: now + Math.min(doubtMs, saidMs ?? doubtMs),
      isSaid: saidMs !== undefined,
    };
    if (this.#remaining !== undefined) this.#remaining = Math.min(0, this.#remaining);
    this.dirty = true;
  }

  /** After a whole window in which nobody told, all are back as far as we know. */
  #expire(): void {
    if (this.#limit === undefined || this.#clock.monotonic() - this.#observedAt < this.#windowMs) return;
    this.#limit = undefined;
    this.#remaining = undefined;
    this.#refusal = undefined;
    this.dirty = true;
  }

  #decayed(): number {
    return this.#recent * Math.exp((this.#recentAt - this.#clock.monotonic()) / rateOverMs);
  }
}

/** `100;w=21600`; undefined for nonsense. */
function parseFigure(
  header: string | undefined,
): { figure: number; windowMs: number | undefined } | undefined {
  const [, figure, seconds] = /^\s*(\d{1,9})\s*(?:;\s*w=(\d{1,9}))?\s*(?:[;,].*)?$/.exec(header ?? '') ?? [];
  if (figure === undefined) return undefined;
  const windowMs = Math.min(longestWindowMs, Math.max(shortestWindowMs, Number(seconds) * 1000));
  return { figure: Number(figure), windowMs: seconds === undefined ? undefined : windowMs };
}
