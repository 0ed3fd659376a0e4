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
  remembers: number;
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

const rememberedForMs = 60 * 60_000;

/** The accounts of one upstream. Chooses the next account by pulls left, working credentials and access to the repo. */
export class AccountPool {
  readonly registry: string;
  readonly accounts: readonly Account[];
  readonly #name: string;
  readonly #metrics: Metrics;
  readonly #clock: Clock;
  readonly #reserve: () => number;
  /** The account that was last granted access to a repo. */
  readonly #seers: LRUCache<string, Account>;
  /** Accounts that were denied a repo that another account can read. */
  readonly #blind: LRUCache<string, true>;

  constructor(options: AccountPoolOptions, { clock, log, metrics, savedQuota }: AccountPoolContext) {
    const { registry, name, credentials, reserve, remembers } = options;
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
    this.#seers = new LRUCache({ max: remembers });
    this.#blind = new LRUCache({
      max: remembers,
      ttl: rememberedForMs,
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
    this.notAsked('reserve');
    return false;
  }

  /** Whether the chosen account's quota has been observed. */
  isTold(repo: Repo): boolean {
    return this.choose(true, repo, this.accounts)?.quota.isTold ?? true;
  }

  /** The `quota-spent` fault that a pull would get now; undefined if an account has pulls left. */
  spent(repo: Repo, what: string): MirrorError | undefined {
    const accounts = this.#spent(repo);
    return accounts.length === 0 ? undefined : quotaSpent(what, accounts);
  }

  /** Accounts without pulls whose quota is to be checked again, at most once a minute each. */
  dueForALook(repo: Repo): Account[] {
    const due = this.#spent(repo).filter(({ quota }) => quota.isDueForALook);
    for (const { quota } of due) quota.looks();
    return due;
  }

  /** Chooses one of these accounts; for a pull, one with pulls left. Undefined if there is none. */
  choose(isPull: boolean, repo: Repo, accounts: readonly Account[]): Account | undefined {
    for (const account of accounts) account.reconsider();
    const seeing = this.#seeing(repo, accounts);
    const open = seeing.filter(({ quota }) => quota.left > 0);
    // Requests that are not pulls use the same account as the manifest, which saves a token.
    const candidates = isPull || open.length > 0 ? open : seeing;
    const best = candidates.reduce<Account | undefined>(
      (most, each) => (most && most.quota.left >= each.quota.left ? most : each),
      undefined,
    );
    const seer = this.#seers.get(repo.key);
    if (!best || !seer || !candidates.includes(seer)) return best;
    return best.quota.isTold && best.quota.left > 2 * seer.quota.left ? best : seer;
  }

  /** Records that the account was granted access to the repo, and these others were not. */
  saw(repo: Repo, account: Account, unseeing: Iterable<Account>): void {
    if (this.accounts.length === 1) return;
    this.#seers.set(repo.key, account);
    this.#blind.delete(blindKey(repo, account));
    for (const each of unseeing) this.#blind.set(blindKey(repo, each), true);
  }

  notAsked(reason: string): void {
    this.#metrics.admissionsRefused.add(1, this.#name, reason);
  }

  /** The accounts with access to the repo, if none of them has pulls left; else none. */
  #spent(repo: Repo): Account[] {
    const accounts = this.#seeing(repo, this.accounts);
    return accounts.some(({ quota }) => quota.left > 0) ? [] : accounts;
  }

  /** The usable accounts with access to the repo, as far as known; if none has, all usable accounts. */
  #seeing(repo: Repo, accounts: readonly Account[]): Account[] {
    const usable = accounts.filter(({ disabled }) => !disabled);
    const seeing = usable.filter((account) => !this.#blind.has(blindKey(repo, account)));
    return seeing.length > 0 ? seeing : usable;
  }

  /**
   * Saves quotas changed since the last save. Throws what `write` throws; unsaved changes are kept for the next call.
   */
  save(write: (account: string, state: QuotaState | undefined) => void): void {
    for (const account of this.accounts) {
      const { name, quota } = account;
      account.tellOfQuota();
      if (!quota.dirty) continue;
      write(name, quota.state);
      quota.dirty = false;
    }
  }
}

function blindKey(repo: Repo, { name }: Account): string {
  return `${name} ${repo.key}`;
}
