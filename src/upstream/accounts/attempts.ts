import type { Repo } from '../../oci/repo.ts';
import { errorCode, MirrorError } from '../../util/errors.ts';
import type { Headers } from '../http/headers.ts';
import type { AccountPool } from './account-pool.ts';
import { quotaSpent, type Account } from './account.ts';
import type { Ticket } from './quota.ts';

/** Connection errors before anything was sent. */
const unsent = new Set([
  'ECONNREFUSED',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  'UND_ERR_CONNECT_TIMEOUT',
]);

/**
 * The attempts at one request, each with another account: the next one follows if the account's pulls are spent, its
 * credentials are rejected or it has no access to the repo.
 */
export class Attempts {
  readonly #pool: AccountPool;
  readonly #request: { readonly isPull: boolean; readonly repo: Repo; readonly what: string };
  readonly #accounts: readonly Account[];
  readonly #tried = new Set<Account>();
  /** Accounts that were denied the repo. */
  readonly #denied = new Set<Account>();
  #last: MirrorError | undefined;

  constructor(
    pool: AccountPool,
    request: { isPull: boolean; repo: Repo; what: string },
    accounts = pool.accounts,
  ) {
    this.#pool = pool;
    this.#request = request;
    this.#accounts = accounts;
  }

  /** The next attempt. Throws the most telling fault if no account is left. */
  next(): Attempt {
    const { isPull, repo } = this.#request;
    const untried = this.#accounts.filter((account) => !this.#tried.has(account));
    const account = this.#pool.choose(isPull, repo, untried);
    if (!account) throw this.#fault();
    this.#tried.add(account);
    return new Attempt(account, isPull, this);
  }

  /** Notes that the account's attempt failed. Returns whether another account may succeed. */
  failed(account: Account, error: MirrorError): boolean {
    this.#last = error;
    if (error.fault === 'repo-unknown') this.#denied.add(account);
    else if (error.fault !== 'quota-spent' && error.fault !== 'account-refused') return false;
    return true;
  }

  succeeded(account: Account): void {
    this.#pool.recordAccess(this.#request.repo, account, this.#denied);
  }

  #fault(): MirrorError {
    const { isPull, what } = this.#request;
    const spent = this.#accounts.filter(
      (each) => !this.#denied.has(each) && !each.disabled && each.quota.left === 0,
    );
    if (isPull && spent.length > 0) {
      this.#pool.countRefusal('quota-spent');
      return quotaSpent(what, spent);
    }
    const disabled = this.#accounts.map((each) => each.disabled).find((each) => each !== undefined);
    if (disabled) {
      this.#pool.countRefusal('account-refused');
      return new MirrorError('account-refused', disabled.message, { cause: this.#last, notAsked: true });
    }
    return this.#last ?? new MirrorError('internal', `${what}: no account left`);
  }
}

/** One account's attempt. Call exactly one of `answered` and `unanswered`, and one of `failed` and `succeeded`. */
export class Attempt {
  readonly account: Account;
  readonly #ticket: Ticket;
  readonly #attempts: Attempts;
  #isSent = false;

  constructor(account: Account, isPull: boolean, attempts: Attempts) {
    this.account = account;
    this.#attempts = attempts;
    this.#ticket = account.quota.begin(isPull);
  }

  /** The request is about to be sent, so the upstream may count it as a pull. */
  sent(): void {
    this.#isSent = true;
  }

  /**
   * The registry responded; `headers`: only for a manifest. `isSpent`: the response says that the pull limit is
   * reached.
   */
  answered(status: number, headers: Headers | undefined, isSpent: boolean): void {
    if (headers) this.account.quota.isObserved = true;
    this.account.quota.answered(this.#ticket, status, headers ?? {}, isSpent);
    this.account.logQuotaChange();
  }

  /** The request was not sent, or got no response. */
  unanswered(error: MirrorError): void {
    const { quota } = this.account;
    if (!this.#isSent || error.notAsked || unsent.has(errorCode(error.cause) ?? ''))
      quota.unsent(this.#ticket);
    else quota.failed(this.#ticket);
  }

  /** The attempt failed. Returns whether another account may succeed. */
  failed(error: MirrorError): boolean {
    return this.#attempts.failed(this.account, error);
  }

  /** The attempt succeeded; `isPublic`: without credentials. */
  succeeded(isPublic: boolean): void {
    if (!isPublic) this.account.accepted();
    this.#attempts.succeeded(this.account);
  }
}
