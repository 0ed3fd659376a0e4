import { LRUCache } from 'lru-cache';
import type { Repo } from '../../oci/repo.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Metrics } from '../../telemetry/metrics.ts';
import type { Clock } from '../../util/clock.ts';
import type { MirrorError } from '../../util/errors.ts';
import type { QuotaState } from '../../util/quota-state.ts';
import { Account, quotaSpent } from './account.ts';
import { anonymous, type CredentialSource } from './credentials.ts';
import { Quota } from './quota.ts';

export interface AccountPoolOptions {
  registry: string;
  /** The upstream's name in metrics. */
  name: string;
  /** Empty: anonymous. */
  credentials: readonly CredentialSource[];
  /** Pulls that background work must leave. */
  reserve: () => number;
  /** How many repos and hosts to remember. */
  maxRemembered: number;
}

export interface AccountPoolContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** Quota state saved by an earlier run. */
  readonly savedQuota: (account: string) => QuotaState | undefined;
}

export interface PullFigures {
  readonly limit: number;
  readonly remaining: number;
  readonly windowMs: number;
}

const deniedTtlMs = 60 * 60_000;

/** The accounts of one upstream. Chooses the next account by pulls left, working credentials and access to the repo. */
export class AccountPool {
  readonly registry: string;
  readonly accounts: readonly Account[];
  readonly #name: string;
  readonly #metrics: Metrics;
  readonly #clock: Clock;
  readonly #reserve: () => number;
  /** The account that was last granted access to a repo. */
  readonly #lastGranted: LRUCache<string, Account>;
  /** Accounts that were denied a repo that another account can read. */
  readonly #denied: LRUCache<string, true>;

  constructor(options: AccountPoolOptions, { clock, log, metrics, savedQuota }: AccountPoolContext) {
    const { registry, name, credentials, reserve, maxRemembered } = options;
    this.registry = registry;
    this.#name = name;
    this.#metrics = metrics;
    this.#clock = clock;
    this.#reserve = reserve;
    const sources = credentials.length > 0 ? credentials : [anonymous];
    this.accounts = sources.map((source) => {
      const quota = new Quota(clock, savedQuota(source.name));
      return new Account(source, quota, { registry, clock, log });
    });
    this.#lastGranted = new LRUCache({ max: maxRemembered });
    this.#denied = new LRUCache({
      max: maxRemembered,
      ttl: deniedTtlMs,
      perf: { now: () => clock.monotonic() },
      ttlResolution: 0,
    });
  }

  /** Pull limit and pulls left, summed over all accounts; undefined if the upstream sends no rate-limit headers. */
  get pulls(): PullFigures | undefined {
    const counted = this.accounts.filter(({ quota }) => quota.limit !== undefined);
    if (counted.length === 0) return undefined;
    return {
      limit: counted.reduce((sum, { quota }) => sum + (quota.limit ?? 0), 0),
      remaining: counted.reduce((sum, { quota }) => sum + (quota.remaining ?? 0), 0),
      windowMs: Math.min(...counted.map(({ quota }) => quota.windowMs)),
    };
  }

  /** Why no account can pull now, without account names, as it is public; undefined if one can, as far as known. */
  get obstacle(): string | undefined {
    const { registry } = this;
    const usable = this.accounts.filter(({ disabled }) => !disabled);
    if (usable.length === 0) return `${registry}: configured credentials rejected or unavailable`;
    if (usable.some(({ quota }) => quota.left > 0)) return undefined;
    const backInMs = Math.min(...usable.map(({ quota }) => quota.backInMs ?? 0));
    return `${registry}: all pulls are spent; more may be available at ${new Date(this.#clock.now() + backInMs).toISOString()}`;
  }

  /** Whether a manifest may be pulled without a waiting client: the reserve is for clients. */
  mayPullAhead(repo: Repo): boolean {
    const account = this.choose(true, repo, this.accounts);
    if (account && account.quota.left > this.#reserve()) return true;
    this.countRefusal('reserve');
    return false;
  }

  /** Whether the chosen account's quota has been observed. */
  isQuotaKnown(repo: Repo): boolean {
    return this.choose(true, repo, this.accounts)?.quota.isObserved ?? true;
  }

  /** The `quota-spent` fault that a pull would get now; undefined if an account has pulls left. */
  spent(repo: Repo, what: string): MirrorError | undefined {
    const accounts = this.#spent(repo);
    return accounts.length === 0 ? undefined : quotaSpent(what, accounts);
  }

  /** Accounts without pulls whose quota is to be checked again, at most once a minute each. */
  dueForProbe(repo: Repo): Account[] {
    const due = this.#spent(repo).filter(({ quota }) => quota.isProbeDue);
    for (const { quota } of due) quota.markProbed();
    return due;
  }

  /** Chooses one of these accounts; for a pull, one with pulls left. Undefined if there is none. */
  choose(isPull: boolean, repo: Repo, accounts: readonly Account[]): Account | undefined {
    for (const account of accounts) account.reconsider();
    const permitted = this.#permitted(repo, accounts);
    const withPulls = permitted.filter(({ quota }) => quota.left > 0);
    // Requests that are not pulls use the same account as the manifest, which saves a token.
    const candidates = isPull || withPulls.length > 0 ? withPulls : permitted;
    const best = candidates.reduce<Account | undefined>(
      (most, each) => (most && most.quota.left >= each.quota.left ? most : each),
      undefined,
    );
    const last = this.#lastGranted.get(repo.key);
    if (!best || !last || !candidates.includes(last)) return best;
    return best.quota.isObserved && best.quota.left > 2 * last.quota.left ? best : last;
  }

  /** Records that the account was granted access to the repo, and these others were not. */
  recordAccess(repo: Repo, account: Account, denied: Iterable<Account>): void {
    if (this.accounts.length === 1) return;
    this.#lastGranted.set(repo.key, account);
    this.#denied.delete(deniedKey(repo, account));
    for (const each of denied) this.#denied.set(deniedKey(repo, each), true);
  }

  countRefusal(reason: string): void {
    this.#metrics.admissionsRefused.add(1, this.#name, reason);
  }

  /** The accounts with access to the repo, if none of them has pulls left; else none. */
  #spent(repo: Repo): Account[] {
    const accounts = this.#permitted(repo, this.accounts);
    return accounts.some(({ quota }) => quota.left > 0) ? [] : accounts;
  }

  /** The usable accounts with access to the repo, as far as known; if none has, all usable accounts. */
  #permitted(repo: Repo, accounts: readonly Account[]): Account[] {
    const usable = accounts.filter(({ disabled }) => !disabled);
    const permitted = usable.filter((account) => !this.#denied.has(deniedKey(repo, account)));
    return permitted.length > 0 ? permitted : usable;
  }

  /**
   * Saves quotas changed since the last save. Throws what `write` throws; unsaved changes are kept for the next call.
   */
  save(write: (account: string, state: QuotaState | undefined) => void): void {
    for (const account of this.accounts) {
      const { name, quota } = account;
      account.logQuotaChange();
      if (!quota.dirty) continue;
      write(name, quota.state);
      quota.dirty = false;
    }
  }
}

function deniedKey(repo: Repo, { name }: Account): string {
  return `${name} ${repo.key}`;
}
