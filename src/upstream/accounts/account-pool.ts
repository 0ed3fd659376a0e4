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
  /** What metrics call it. */
  name: string;
  /** None: anonymous. */
  credentials: readonly CredentialSource[];
  /** Pulls that are kept back from background work. */
  reserve: () => number;
  /** Repos and hosts of which something is remembered. */
  remembers: number;
}

export interface AccountPoolContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** What an earlier run has written down. */
  readonly savedQuota: (account: string) => QuotaState | undefined;
}

export interface PullFigures {
  readonly limit: number;
  readonly remaining: number;
  readonly windowMs: number;
}

const rememberedForMs = 60 * 60_000;

/**
 * The accounts of one upstream: which of them is to ask next. It knows who has pulls left, whose credentials are good, and who
 * may see which repo.
 */
export class AccountPool {
  readonly registry: string;
  readonly accounts: readonly Account[];
  readonly #name: string;
  readonly #metrics: Metrics;
  readonly #clock: Clock;
  readonly #reserve: () => number;
  /** Who was given something of a repo last. */
  readonly #seers: LRUCache<string, Account>;
  /** Who may not see a repo that another account sees. */
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

  /** Pulls in a window and pulls that are left, of all accounts together; undefined where nobody counts. */
  get pulls(): PullFigures | undefined {
    const counted = this.accounts.filter(({ quota }) => quota.limit !== undefined);
    if (counted.length === 0) return undefined;
    return {
      limit: counted.reduce((sum, { quota }) => sum + (quota.limit ?? 0), 0),
      remaining: counted.reduce((sum, { quota }) => sum + (quota.remaining ?? 0), 0),
      windowMs: Math.min(...counted.map(({ quota }) => quota.windowMs)),
    };
  }

  /** Why no account can pull now, for everybody to see: it names none of them. Undefined: as far as is known one can. */
  get obstacle(): string | undefined {
    const { registry } = this;
    const usable = this.accounts.filter(({ disabled }) => !disabled);
    if (usable.length === 0) return `${registry} refuses the configured credentials, or they cannot be had`;
    if (usable.some(({ quota }) => quota.left > 0)) return undefined;
    const backInMs = Math.min(...usable.map(({ quota }) => quota.backInMs ?? 0));
    return `the pulls of ${registry} are spent, more may be back at ${new Date(this.#clock.now() + backInMs).toISOString()}`;
  }

  /** Whether a manifest may be asked for though no client waits for it: the reserve is for clients. */
  mayPullAhead(repo: Repo): boolean {
    const account = this.choose(true, repo, this.accounts);
    if (account && account.quota.left > this.#reserve()) return true;
    this.notAsked('reserve');
    return false;
  }

  /** Whether it is known if the account that would be asked is counted. */
  isTold(repo: Repo): boolean {
    return this.choose(true, repo, this.accounts)?.quota.isTold ?? true;
  }

  /** The fault that a pull would meet now for lack of quota. */
  spent(repo: Repo, what: string): MirrorError | undefined {
    const accounts = this.#spent(repo);
    return accounts.length === 0 ? undefined : quotaSpent(what, accounts);
  }

  /** Spent accounts that are to be asked whether they still are: where none has pulls left, once a minute each. */
  dueForALook(repo: Repo): Account[] {
    const due = this.#spent(repo).filter(({ quota }) => quota.isDueForALook);
    for (const { quota } of due) quota.looks();
    return due;
  }

  /** Who is to ask, of these. For a pull somebody who has one left. */
  choose(isPull: boolean, repo: Repo, accounts: readonly Account[]): Account | undefined {
    for (const account of accounts) account.reconsider();
    const seeing = this.#seeing(repo, accounts);
    const open = seeing.filter(({ quota }) => quota.left > 0);
    // What is free is asked by whoever would be asked for the manifest too: that saves a token.
    const candidates = isPull || open.length > 0 ? open : seeing;
    const best = candidates.reduce<Account | undefined>(
      (most, each) => (most && most.quota.left >= each.quota.left ? most : each),
      undefined,
    );
    const seer = this.#seers.get(repo.key);
    if (!best || !seer || !candidates.includes(seer)) return best;
    return best.quota.isTold && best.quota.left > 2 * seer.quota.left ? best : seer;
  }

  /** The account was given something of the repo, which these were not. */
  saw(repo: Repo, account: Account, unseeing: Iterable<Account>): void {
    if (this.accounts.length === 1) return;
    this.#seers.set(repo.key, account);
    this.#blind.delete(blindKey(repo, account));
    for (const each of unseeing) this.#blind.set(blindKey(repo, each), true);
  }

  notAsked(reason: string): void {
    this.#metrics.admissionsRefused.add(1, this.#name, reason);
  }

  /** Those that could ask for a manifest of the repo, if none of them has a pull left. */
  #spent(repo: Repo): Account[] {
    const accounts = this.#seeing(repo, this.accounts);
    return accounts.some(({ quota }) => quota.left > 0) ? [] : accounts;
  }

  /** Those of them that may be used, and see the repo as far as we know; if there are none, those that may be used. */
  #seeing(repo: Repo, accounts: readonly Account[]): Account[] {
    const usable = accounts.filter(({ disabled }) => !disabled);
    const seeing = usable.filter((account) => !this.#blind.has(blindKey(repo, account)));
    return seeing.length > 0 ? seeing : usable;
  }

  /** What has changed since it was saved last. Throws as `write` does; then it is still to be saved. */
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
