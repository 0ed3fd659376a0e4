import type { Clock } from '../util/clock.ts';
import { MirrorError, toMirrorError } from '../util/errors.ts';
import type { Logger } from '../util/log.ts';
import type { CredentialSource, Login } from './credentials.ts';
import type { Quota } from './quota.ts';

export interface AccountContext {
  readonly registry: string;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Accounts whose password is tried again and again get locked. */
const firstAsideMs = 15 * 60_000;
const longestAsideMs = 2 * 60 * 60_000;
const withoutLoginMs = 60_000;
const reconsiderEveryMs = 10_000;

interface Aside {
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
  #aside: Aside | undefined;
  #refusals = 0;

  constructor(source: CredentialSource, quota: Quota, context: AccountContext) {
    this.name = source.name;
    this.quota = quota;
    this.#source = source;
    this.#context = context;
  }

  /** Why it is not to be used now: its credentials were refused, and are still the same. */
  get aside(): MirrorError | undefined {
    const aside = this.#aside;
    const now = this.#context.clock.monotonic();
    if (!aside || now >= aside.until) return undefined;
    if (aside.login && now - aside.reconsideredAt >= reconsiderEveryMs) {
      aside.reconsideredAt = now;
      void this.#reconsider(aside, aside.login);
    }
    return aside.error;
  }

  /** Undefined: it is anonymous. Throws `account-refused` when the credentials cannot be had. */
  async login(): Promise<Login | undefined> {
    try {
      return await this.#source.login();
    } catch (cause) {
      const { registry } = this.#context;
      const why = toMirrorError(cause).fault === 'internal' ? (cause as Error).message : 'unknown';
      const error = new MirrorError('account-refused', `account ${this.name} of ${registry}: ${why}`, {
        cause,
      });
      this.#setAside(error, undefined, withoutLoginMs);
      throw error;
    }
  }

  /** The upstream does not take this login. Returns whether there is another one to try at once. */
  async refused(login: Login, error: MirrorError): Promise<boolean> {
    const next = await this.#source.renewed(login).catch(() => undefined);
    if (next && !isSame(next, login)) return true;
    this.#setAside(error, login, Math.min(firstAsideMs * 2 ** this.#refusals, longestAsideMs));
    this.#refusals += 1;
    return false;
  }

  accepted(): void {
    if (!this.#aside) return;
    this.#aside = undefined;
    this.#refusals = 0;
    this.#context.log.info(
      { registry: this.#context.registry, account: this.name },
      'an account is in use again',
    );
  }

  #setAside(error: MirrorError, login: Login | undefined, forMs: number): void {
    const now = this.#context.clock.monotonic();
    const isNews = !this.#aside || now >= this.#aside.until;
    this.#aside = { error, login, until: now + forMs, reconsideredAt: now };
    if (!isNews) return;
    const { registry, log } = this.#context;
    log.error(
      { err: error, registry, account: this.name, forSeconds: forMs / 1000 },
      'an account is set aside: its credentials were refused or cannot be had',
    );
  }

  /** A password that was changed is tried without waiting. */
  async #reconsider(aside: Aside, refused: Login): Promise<void> {
    const login = await this.#source.login().catch(() => refused);
    if (this.#aside === aside && !(login && isSame(login, refused))) this.#aside = { ...aside, until: 0 };
  }
}

function isSame(a: Login, b: Login): boolean {
  return a.username === b.username && a.password === b.password;
}
