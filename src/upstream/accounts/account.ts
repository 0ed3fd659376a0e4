import type { Logger } from '../../telemetry/log.ts';
import type { Clock } from '../../util/clock.ts';
import { MirrorError } from '../../util/errors.ts';
import type { CredentialSource, Login } from './credentials.ts';
import type { Quota } from './quota.ts';

export interface AccountContext {
  readonly registry: string;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Accounts whose password is tried again and again get locked. */
const firstDisabledMs = 15 * 60_000;
const longestDisabledMs = 2 * 60 * 60_000;
const withoutLoginMs = 60_000;
const reconsiderEveryMs = 10_000;

interface Disabled {
  readonly error: MirrorError;
  /** What was refused; undefined: there was nothing to be had. */
  readonly login: Login | undefined;
  readonly until: number;
  reconsideredAt: number;
}

/** One set of upstream credentials, or anonymous, with its own quota. */
export class Account {
  /** As in metrics and messages. */
  readonly name: string;
  readonly quota: Quota;
  readonly #source: CredentialSource;
  readonly #context: AccountContext;
  #disabled: Disabled | undefined;
  #isProven = false;
  /** Logins that were refused without one being taken in between. */
  #inARow = 0;
  /** How often it was disabled so. */
  #times = 0;
  #isSpentTold = false;

  constructor(source: CredentialSource, quota: Quota, context: AccountContext) {
    this.name = source.name;
    this.quota = quota;
    this.#source = source;
    this.#context = context;
  }

  /** Why it is not to be used now: its credentials were refused, and are still the same. */
  get disabled(): MirrorError | undefined {
    return this.#isDisabled() ? this.#disabled?.error : undefined;
  }

  /** Its login has been accepted, and not been refused since; so many may use it at once. */
  get isProven(): boolean {
    return this.#isProven;
  }

  /** Undefined: it is anonymous. Throws `account-refused` when the credentials cannot be had. */
  async login(): Promise<Login | undefined> {
    try {
      const login = await this.#source.login();
      if (!login) this.#isProven = true;
      return login;
    } catch (cause) {
      // Which file or program it is is not for clients to know: the log has it.
      const message = `account ${this.name} of ${this.#context.registry}: its credentials cannot be had`;
      const error = new MirrorError('account-refused', message, { cause });
      this.#disable(error, undefined, withoutLoginMs);
      throw error;
    }
  }

  /** The upstream does not take this login. Returns whether there is another one to try at once. */
  async refused(login: Login, error: MirrorError): Promise<boolean> {
    this.#isProven = false;
    this.#inARow += 1;
    // A source that has a new one each time must not be asked for ever.
    if (this.#inARow === 1) {
      const next = await this.#source.renewed(login).catch(() => undefined);
      if (next && !isSame(next, login)) return true;
    }
    this.#disable(error, login, Math.min(firstDisabledMs * 2 ** this.#times, longestDisabledMs));
    this.#times += 1;
    return false;
  }

  /** The upstream has taken its login, now or when it gave a token for it. */
  accepted(): void {
    // A token from before says nothing about the login that was refused since.
    if (this.#isDisabled()) return;
    this.#isProven = true;
    this.#inARow = 0;
    this.#times = 0;
    if (!this.#disabled) return;
    this.#disabled = undefined;
    this.#context.log.info(
      { registry: this.#context.registry, account: this.name },
      'account enabled again: credentials accepted',
    );
  }

  /** Looks now and then whether the credentials that were refused have been changed: then they are tried without waiting. */
  reconsider(): void {
    const now = this.#context.clock.monotonic();
    const disabled = this.#disabled;
    if (!disabled?.login || !this.#isDisabled() || now - disabled.reconsideredAt < reconsiderEveryMs) return;
    disabled.reconsideredAt = now;
    const refused = disabled.login;
    this.#source.renewed(refused).then(
      (login) => {
        if (this.#disabled !== disabled || (login && isSame(login, refused))) return;
        this.#disabled = { ...disabled, until: 0 };
        this.#inARow = 0;
      },
      () => undefined,
    );
  }

  /** Tells once that its pulls are spent, and once that they are back. */
  tellOfQuota(): void {
    const { isSpent, limit, backInMs } = this.quota;
    if (isSpent === this.#isSpentTold) return;
    this.#isSpentTold = isSpent;
    const { registry, clock, log } = this.#context;
    const about = { registry, account: this.name, limit };
    if (!isSpent) {
      log.info(about, 'pulls are back');
      return;
    }
    const backAt = new Date(clock.now() + (backInMs ?? 0)).toISOString();
    log.warn({ ...about, backAt }, `pulls are spent: what is held is served, more may be back at ${backAt}`);
  }

  #isDisabled(): boolean {
    return this.#disabled !== undefined && this.#context.clock.monotonic() < this.#disabled.until;
  }

  #disable(error: MirrorError, login: Login | undefined, forMs: number): void {
    const now = this.#context.clock.monotonic();
    const isNews = !this.#isDisabled();
    this.#isProven = false;
    this.#disabled = { error, login, until: now + forMs, reconsideredAt: now };
    if (!isNews) return;
    const { registry, log } = this.#context;
    log.error(
      { err: error, registry, account: this.name, forSeconds: forMs / 1000 },
      'account disabled: credentials rejected or unavailable',
    );
  }
}

/** Names account, limit, and when it may come back. */
export function quotaSpent(what: string, accounts: readonly Account[]): MirrorError {
  const backInMs = Math.min(...accounts.map(({ quota }) => quota.backInMs ?? 0));
  const names = accounts.map(({ name, quota }) => {
    const { limit, windowMs, source } = quota;
    const counted = limit === undefined ? '' : ` of ${limit} in ${showTime(windowMs)}`;
    return `account ${name}${source === '' ? '' : ` (${source})`} has spent its pulls${counted}`;
  });
  return new MirrorError(
    'quota-spent',
    `${what}: ${names.join(', ')}; they may come back in ${showTime(backInMs)}; what is cached is still served`,
    { retryAfterMs: Math.max(1000, backInMs), notAsked: true },
  );
}

function showTime(ms: number): string {
  const minutes = ms / 60_000;
  if (minutes < 1) return `${Math.ceil(ms / 1000)} s`;
  return minutes < 90 ? `${Math.ceil(minutes)} min` : `${(minutes / 60).toFixed(1).replace('.0', '')} h`;
}

function isSame(a: Login, b: Login): boolean {
  return a.username === b.username && a.password === b.password;
}

/** `message` says what was asked and how it was answered. */
export function accountRefused(message: string, { name }: Account): MirrorError {
  return new MirrorError('account-refused', `${message}: it refuses the account ${name}`);
}
