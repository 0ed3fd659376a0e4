import { LRUCache } from 'lru-cache';
import type { Repo } from '../oci/repo.ts';
import type { Clock } from '../util/clock.ts';
import { errorCode, MirrorError } from '../util/errors.ts';
import type { Logger } from '../util/log.ts';
import type { Metrics } from '../util/metrics.ts';
import type { QuotaState } from '../util/quota-state.ts';
import { Account } from './account.ts';
import { anonymous, type CredentialSource } from './credentials.ts';
import { Gates, type GateFault, type Pass } from './gate.ts';
import { Quota, type Ticket } from './quota.ts';
import type { Headers } from './transport.ts';

export interface AdmissionOptions {
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

export interface AdmissionContext {
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

/** How a connection fails over which nothing was sent. */
const unsent = new Set([
  'ECONNREFUSED',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  'UND_ERR_CONNECT_TIMEOUT',
]);
const rememberedForMs = 60 * 60_000;

/**
 * Whether an upstream call may be made now, and as whom. Everything that asks an upstream goes through here: by host
 * (is it well, does it limit all requests?) and by account (has it pulls left, are its credentials good, may it see the
 * repo?).
 */
export class Admission {
  readonly registry: string;
  readonly accounts: readonly Account[];
  readonly #name: string;
  readonly #gates: Gates;
  readonly #metrics: Metrics;
  readonly #clock: Clock;
  readonly #reserve: () => number;
  /** Who was given something of a repo last. */
  readonly #seers: LRUCache<string, Account>;
  /** Who may not see a repo that another account sees. */
  readonly #blind: LRUCache<string, true>;

  constructor(options: AdmissionOptions, { clock, log, metrics, savedQuota }: AdmissionContext) {
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
    this.#gates = new Gates(clock, remembers, (host, fault) => tell(log, registry, host, fault));
  }

  /** Throws `upstream-down`, `upstream-timeout` or `upstream-limited` while the host is better not asked. */
  async enter(url: URL, what: string, insists: boolean): Promise<Pass> {
    try {
      return await this.#gates.of(url).enter(what, insists);
    } catch (error) {
      this.notAsked((error as MirrorError).fault);
      throw error;
    }
  }

  /** Pulls in a window and pulls that are left, of all accounts together; undefined where nobody counts. */
  get pool(): PullFigures | undefined {
    const counted = this.accounts.filter(({ quota }) => quota.limit !== undefined);
    if (counted.length === 0) return undefined;
    return {
      limit: counted.reduce((sum, { quota }) => sum + (quota.limit ?? 0), 0),
      remaining: counted.reduce((sum, { quota }) => sum + (quota.remaining ?? 0), 0),
      windowMs: Math.min(...counted.map(({ quota }) => quota.windowMs)),
    };
  }

  isUnanswered(origin: string): boolean {
    return this.#gates.unanswered(origin) !== undefined;
  }

  /** Why no cold pull can work now, for everybody to see: it names no account. Undefined: as far as is known it can. */
  obstacle(registryOrigin: string): string | undefined {
    const { registry } = this;
    const fault = this.#gates.unanswered(registryOrigin);
    if (fault === 'upstream-limited') return `${registry} limits all requests`;
    if (fault) return `${registry} cannot be reached or fails`;
    const usable = this.accounts.filter(({ aside }) => !aside);
    if (usable.length === 0) return `${registry} refuses the configured credentials, or they cannot be had`;
    if (usable.some(({ quota }) => quota.left > 0)) return undefined;
    const backInMs = Math.min(...usable.map(({ quota }) => quota.backInMs ?? 0));
    return `the pulls of ${registry} are spent, more may be back at ${new Date(this.#clock.now() + backInMs).toISOString()}`;
  }

  /** How many hosts are shut: whether the registry itself is, and its token servers and CDNs. */
  shut(registryOrigin: string): { own: number; others: number } {
    return {
      own: this.#gates.shut((origin) => origin === registryOrigin),
      others: this.#gates.shut((origin) => origin !== registryOrigin),
    };
  }

  /** Accounts for one call, one after the other. */
  turns(isPull: boolean, repo: Repo, what: string, accounts = this.accounts): Turns {
    return new Turns(this, { isPull, repo, what }, accounts);
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
    const usable = accounts.filter(({ aside }) => !aside);
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

/** One call's way through the accounts: a spent one hands over, and so does one that is refused or sees nothing. */
export class Turns {
  readonly #admission: Admission;
  readonly #question: { readonly isPull: boolean; readonly repo: Repo; readonly what: string };
  readonly #accounts: readonly Account[];
  readonly #tried = new Set<Account>();
  /** Those that have said that there is nothing for them. */
  readonly #unseeing = new Set<Account>();
  #last: MirrorError | undefined;

  constructor(
    admission: Admission,
    question: { isPull: boolean; repo: Repo; what: string },
    accounts: readonly Account[],
  ) {
    this.#admission = admission;
    this.#question = question;
    this.#accounts = accounts;
  }

  /** Throws the fault that says most about why nobody is left. */
  next(): Turn {
    const { isPull, repo } = this.#question;
    const left = this.#accounts.filter((account) => !this.#tried.has(account));
    const account = this.#admission.choose(isPull, repo, left);
    if (!account) throw this.#fault();
    this.#tried.add(account);
    return new Turn(account, isPull, this);
  }

  /** What the account's try has come to. Returns whether another one may do better. */
  lost(account: Account, error: MirrorError): boolean {
    this.#last = error;
    if (error.fault === 'repo-unknown') this.#unseeing.add(account);
    else if (error.fault !== 'quota-spent' && error.fault !== 'account-refused') return false;
    return true;
  }

  won(account: Account): void {
    this.#admission.saw(this.#question.repo, account, this.#unseeing);
  }

  #fault(): MirrorError {
    const { isPull, what } = this.#question;
    const spent = this.#accounts.filter(
      (each) => !this.#unseeing.has(each) && !each.aside && each.quota.left === 0,
    );
    if (isPull && spent.length > 0) {
      this.#admission.notAsked('quota-spent');
      return quotaSpent(what, spent);
    }
    const aside = this.#accounts.map((each) => each.aside).find((each) => each !== undefined);
    if (aside) {
      this.#admission.notAsked('account-refused');
      return new MirrorError('account-refused', aside.message, { cause: this.#last, notAsked: true });
    }
    return this.#last ?? new MirrorError('internal', `${what}: no account to ask with`);
  }
}

/** One account's try at a call: it ends in exactly one of these ways. */
export class Turn {
  readonly account: Account;
  readonly #ticket: Ticket;
  readonly #turns: Turns;
  #isSent = false;

  constructor(account: Account, isPull: boolean, turns: Turns) {
    this.account = account;
    this.#turns = turns;
    this.#ticket = account.quota.begin(isPull);
  }

  /** From here on it may be counted. */
  sent(): void {
    this.#isSent = true;
  }

  /** The registry has answered; `headers`: about a manifest. `isSpent`: that the pull limit is reached. */
  answered(status: number, headers: Headers | undefined, isSpent: boolean): void {
    if (headers) this.account.quota.isTold = true;
    this.account.quota.answered(this.#ticket, status, headers ?? {}, isSpent);
    this.account.tellOfQuota();
  }

  /** It was not asked, or has not answered. */
  unanswered(error: MirrorError): void {
    const { quota } = this.account;
    if (!this.#isSent || error.notAsked || unsent.has(errorCode(error.cause) ?? ''))
      quota.returned(this.#ticket);
    else quota.failed(this.#ticket);
  }

  /** Returns whether another account may do better. */
  lost(error: MirrorError): boolean {
    return this.#turns.lost(this.account, error);
  }

  /** It has what it asked for; `isPublic`: without its credentials. */
  won(isPublic: boolean): void {
    if (!isPublic) this.account.accepted();
    this.#turns.won(this.account);
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

function tell(log: Logger, registry: string, host: string, fault: GateFault | undefined): void {
  if (fault) log.warn({ registry, host, fault }, 'a host is not asked for a while');
  else log.info({ registry, host }, 'a host answers again');
}
