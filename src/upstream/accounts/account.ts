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

/** Registries lock accounts after repeated failed logins, so a rejected password is retried rarely. */
const firstDisabledMs = 15 * 60_000;
const longestDisabledMs = 2 * 60 * 60_000;
const unavailableMs = 60_000;
const reconsiderEveryMs = 10_000;

interface Disabled {
  readonly error: MirrorError;
  /** The rejected login; undefined: no login was available. */
  readonly login: Login | undefined;
  readonly until: number;
  reconsideredAt: number;
}

/** One set of upstream credentials, or anonymous, with its own pull quota. */
export class Account {
  /** Name in metrics and messages. */
  readonly name: string;
  readonly quota: Quota;
  readonly #source: CredentialSource;
  readonly #context: AccountContext;
  #disabled: Disabled | undefined;
  #isProven = false;
  /** Rejected logins since one was last accepted. */
  #consecutiveRejections = 0;
  /** How often it was disabled since a login was last accepted. */
  #timesDisabled = 0;
  #isSpentLogged = false;

  constructor(source: CredentialSource, quota: Quota, context: AccountContext) {
    this.name = source.name;
    this.quota = quota;
    this.#source = source;
    this.#context = context;
  }

  /** Why the account must not be used now: its credentials were rejected and have not changed. */
  get disabled(): MirrorError | undefined {
    return this.#isDisabled() ? this.#disabled?.error : undefined;
  }

  /** The login was accepted and not rejected since, so parallel requests may use it. */
  get isProven(): boolean {
    return this.#isProven;
  }

  /** Undefined: anonymous. Throws `account-refused` if the credentials are unavailable. */
  async login(): Promise<Login | undefined> {
    try {
      const login = await this.#source.login();
      if (!login) this.#isProven = true;
      return login;
    } catch (cause) {
      // Clients must not learn which file or program it is: the log has it as the cause.
      const message = `account ${this.name} of ${this.#context.registry}: credentials unavailable`;
      const error = new MirrorError('account-refused', message, { cause });
      this.#disable(error, undefined, unavailableMs);
      throw error;
    }
  }

  /** The upstream rejected this login. Returns whether another one can be tried at once. */
  async rejected(login: Login, error: MirrorError): Promise<boolean> {
    this.#isProven = false;
    this.#consecutiveRejections += 1;
    // Only once in a row: a source may return a new login each time.
    if (this.#consecutiveRejections === 1) {
      const next = await this.#source.renew(login).catch(() => undefined);
      if (next && !isSame(next, login)) return true;
    }
    this.#disable(error, login, Math.min(firstDisabledMs * 2 ** this.#timesDisabled, longestDisabledMs));
    this.#timesDisabled += 1;
    return false;
  }

  /** The upstream accepted the login, or a token issued for it. */
  accepted(): void {
    // An older token proves nothing about the login rejected since.
    if (this.#isDisabled()) return;
    this.#isProven = true;
    this.#consecutiveRejections = 0;
    this.#timesDisabled = 0;
    if (!this.#disabled) return;
    this.#disabled = undefined;
    this.#context.log.info(
      { registry: this.#context.registry, account: this.name },
      'account enabled again: credentials accepted',
    );
  }

  /** Checks now and then whether rejected credentials have changed, and if so enables the account at once. */
  reconsider(): void {
    const now = this.#context.clock.monotonic();
    const disabled = this.#disabled;
    if (!disabled?.login || !this.#isDisabled() || now - disabled.reconsideredAt < reconsiderEveryMs) return;
    disabled.reconsideredAt = now;
    const refused = disabled.login;
    this.#source.renew(refused).then(
      (login) => {
        if (this.#disabled !== disabled || (login && isSame(login, refused))) return;
        this.#disabled = { ...disabled, until: 0 };
        this.#consecutiveRejections = 0;
      },
      () => undefined,
    );
  }

  /** Logs once when the pulls are spent, and once when there are pulls again. */
  logQuotaChange(): void {
    const { isSpent, limit, backInMs } = this.quota;
    if (isSpent === this.#isSpentLogged) return;
    this.#isSpentLogged = isSpent;
    const { registry, clock, log } = this.#context;
    const fields = { registry, account: this.name, limit };
    if (!isSpent) {
      log.info(fields, 'pulls available again');
      return;
    }
    const backAt = new Date(clock.now() + (backInMs ?? 0)).toISOString();
    log.warn(
      { ...fields, backAt },
      `pulls spent: cached content is served, more pulls may be available at ${backAt}`,
    );
  }

  #isDisabled(): boolean {
    return this.#disabled !== undefined && this.#context.clock.monotonic() < this.#disabled.until;
  }

  #disable(error: MirrorError, login: Login | undefined, forMs: number): void {
    const now = this.#context.clock.monotonic();
    const wasEnabled = !this.#isDisabled();
    this.#isProven = false;
    this.#disabled = { error, login, until: now + forMs, reconsideredAt: now };
    if (!wasEnabled) return;
    const { registry, log } = this.#context;
    log.error(
      { err: error, registry, account: this.name, forSeconds: forMs / 1000 },
      'account disabled: credentials rejected or unavailable',
    );
  }
}

/** The `quota-spent` fault; its message names accounts, limit and when pulls may be available again. */
export function quotaSpent(what: string, accounts: readonly Account[]): MirrorError {
  const backInMs = Math.min(...accounts.map(({ quota }) => quota.backInMs ?? 0));
  const names = accounts.map(({ name, quota }) => {
    const { limit, windowMs, source } = quota;
    const counted = limit === undefined ? '' : ` of ${limit} in ${showTime(windowMs)}`;
    return `account ${name}${source === '' ? '' : ` (${source})`} has spent its pulls${counted}`;
  });
  return new MirrorError(
    'quota-spent',
    `${what}: ${names.join(', ')}; more may be available in ${showTime(backInMs)}; cached content is still served`,
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

/** `message`: what was requested, and the response. */
export function accountRefused(message: string, { name }: Account): MirrorError {
  return new MirrorError('account-refused', `${message}: credentials of account ${name} rejected`);
}
