import { LRUCache } from 'lru-cache';
import type { Repo } from '../oci/repo.ts';
import type { Clock } from '../util/clock.ts';
import { errorCode, MirrorError } from '../util/errors.ts';
import type { Logger } from '../util/log.ts';
import type { Metrics } from '../util/metrics.ts';
import { Account } from './account.ts';
import { anonymous, type CredentialSource } from './credentials.ts';
import { Gates, type GateFault, type Pass } from './gate.ts';
import { Quota, type QuotaState, type Ticket } from './quota.ts';
import type { Headers } from './transport.ts';

export interface AdmissionOptions {
  registry: string;
  /** None: anonymous. */
  credentials: readonly CredentialSource[];
  /** Pulls that are kept back from background work. */
  reserve: number;
}

export interface AdmissionContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  /** What an earlier run has written down. */
  readonly savedQuota: (account: string) => QuotaState | undefined;
}

/** A GET of a manifest counts against the pull limit; everything else is free. */
export type CallKind = 'pull' | 'free';

/** How a connection fails over which nothing was sent. */
const unsent = new Set([
  'ECONNREFUSED',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  'UND_ERR_CONNECT_TIMEOUT',
]);
const maxRemembered = 10_000;
const rememberedForMs = 60 * 60_000;

/**
 * Whether an upstream call may be made now, and as whom. Everything that asks an upstream goes through here: by host
 * (is it well, does it limit all requests?) and by account (has it pulls left, are its credentials good, may it see the
 * repo?).
 */
export class Admission {
  readonly registry: string;
  readonly accounts: readonly Account[];
  readonly #gates: Gates;
  readonly #metrics: Metrics;
  readonly #reserve: number;
  /** Who was given something of a repo last. */
  readonly #seers = new LRUCache<string, Account>({ max: maxRemembered });
  /** Who may not see a repo that another account sees. */
  readonly #blind: LRUCache<string, true>;

  constructor(options: AdmissionOptions, { clock, log, metrics, savedQuota }: AdmissionContext) {
    const { registry, credentials, reserve } = options;
    this.registry = registry;
    this.#metrics = metrics;
    this.#reserve = reserve;
    const sources = credentials.length > 0 ? credentials : [anonymous];
    this.accounts = sources.map((source) => {
      const quota = new Quota(clock, savedQuota(source.name));
      return new Account(source, quota, { registry, clock, log });
    });
    this.#blind = new LRUCache({
      max: maxRemembered,
      ttl: rememberedForMs,
      perf: { now: () => clock.monotonic() },
      ttlResolution: 0,
    });
    this.#gates = new Gates(clock, (host, fault) => tell(log, registry, host, fault));
  }

  /** Throws `upstream-down`, `upstream-timeout` or `upstream-limited` while the host is better not asked. */
  async enter(url: URL, what: string, insists: boolean): Promise<Pass> {
    try {
      return await this.#gates.of(url).enter(what, insists);
    } catch (error) {
      this.#refused((error as MirrorError).fault);
      throw error;
    }
  }

  /** How many hosts are shut: whether the registry itself is, and its token servers and CDNs. */
  shut(registryOrigin: string): { own: number; others: number } {
    return {
      own: this.#gates.shut((origin) => origin === registryOrigin),
      others: this.#gates.shut((origin) => origin !== registryOrigin),
    };
  }

  /** Accounts for one call, one after the other. */
  turns(kind: CallKind, repo: Repo, what: string, accounts = this.accounts): Turns {
    return new Turns(kind, repo, what, {
      accounts,
      seers: this.#seers,
      blind: this.#blind,
      refused: (fault) => this.#refused(fault),
    });
  }

  /** Whether a manifest may be asked for though no client waits for it: the reserve is for clients. */
  mayPullAhead(): boolean {
    const may = this.accounts.some(({ aside, quota }) => !aside && quota.left > this.#reserve);
    if (!may) this.#refused('reserve');
    return may;
  }

  /** The fault that a pull would meet now for lack of quota. */
  spent(what: string): MirrorError | undefined {
    const accounts = this.accounts.filter(({ aside }) => !aside);
    if (accounts.length === 0 || accounts.some(({ quota }) => quota.left > 0)) return undefined;
    return quotaSpent(what, accounts);
  }

  /** Spent accounts that are to be asked whether they still are: where none has pulls left, once a minute each. */
  dueForALook(): Account[] {
    if (this.accounts.some(({ aside, quota }) => !aside && quota.left > 0)) return [];
    const due = this.accounts.filter(({ aside, quota }) => !aside && quota.isDueForALook);
    for (const { quota } of due) quota.looks();
    return due;
  }

  /** What has changed since it was saved last. Throws as `write` does; then it is still to be saved. */
  save(write: (account: string, state: QuotaState | undefined) => void): void {
    for (const { name, quota } of this.accounts) {
      if (!quota.dirty) continue;
      write(name, quota.state);
      quota.dirty = false;
    }
  }

  #refused(reason: string): void {
    this.#metrics.admissionsRefused.add(1, this.registry, reason);
  }
}

interface TurnsContext {
  readonly accounts: readonly Account[];
  readonly seers: LRUCache<string, Account>;
  readonly blind: LRUCache<string, true>;
  readonly refused: (reason: string) => void;
}

/** One call's way through the accounts: a spent one hands over, and so does one that is refused or sees nothing. */
export class Turns {
  readonly #kind: CallKind;
  readonly #repo: Repo;
  readonly #what: string;
  readonly #context: TurnsContext;
  readonly #tried = new Set<Account>();
  /** Those that have said that there is nothing for them. */
  readonly #unseeing = new Set<Account>();
  #last: MirrorError | undefined;

  constructor(kind: CallKind, repo: Repo, what: string, context: TurnsContext) {
    this.#kind = kind;
    this.#repo = repo;
    this.#what = what;
    this.#context = context;
  }

  /** Throws the fault that says most about why nobody is left. */
  next(): Turn {
    const account = this.#choose();
    if (!account) throw this.#fault();
    this.#tried.add(account);
    return new Turn(account, this.#kind, this);
  }

  /** What the account's try has come to. Returns whether another one may do better. */
  lost(account: Account, error: MirrorError): boolean {
    this.#last = error;
    if (error.fault === 'repo-unknown') this.#unseeing.add(account);
    else if (error.fault !== 'quota-spent' && error.fault !== 'account-refused') return false;
    return true;
  }

  won(account: Account): void {
    const { seers, blind, accounts } = this.#context;
    if (accounts.length === 1) return;
    seers.set(this.#repo.key, account);
    blind.delete(this.#keyOf(account));
    for (const each of this.#unseeing) blind.set(this.#keyOf(each), true);
  }

  #keyOf(account: Account): string {
    return `${account.name} ${this.#repo.key}`;
  }

  #choose(): Account | undefined {
    const { accounts, seers, blind } = this.#context;
    const usable = accounts.filter((account) => !this.#tried.has(account) && !account.aside);
    const open = usable.filter(({ quota }) => quota.left > 0);
    // What is free is asked by whoever would be asked for the manifest too: that saves a token.
    const candidates = this.#kind === 'pull' || open.length > 0 ? open : usable;
    const seeing = candidates.filter((account) => !blind.has(this.#keyOf(account)));
    const best = (seeing.length > 0 ? seeing : candidates).reduce<Account | undefined>(
      (most, each) => (most && most.quota.left >= each.quota.left ? most : each),
      undefined,
    );
    const seer = seers.get(this.#repo.key);
    if (!best || !seer || !candidates.includes(seer)) return best;
    return best.quota.left > 2 * seer.quota.left ? best : seer;
  }

  #fault(): MirrorError {
    const { accounts, refused } = this.#context;
    const spent = accounts.filter(
      (each) => !this.#unseeing.has(each) && !each.aside && each.quota.left === 0,
    );
    if (this.#kind === 'pull' && spent.length > 0) {
      refused('quota-spent');
      return quotaSpent(this.#what, spent);
    }
    const aside = accounts.map((each) => each.aside).find((each) => each !== undefined);
    if (aside) {
      refused('account-refused');
      return new MirrorError('account-refused', aside.message, { cause: this.#last, refused: true });
    }
    return this.#last ?? new MirrorError('internal', `${this.#what}: no account to ask with`);
  }
}

/** One account's try at a call: it ends in exactly one of these ways. */
export class Turn {
  readonly account: Account;
  readonly #ticket: Ticket;
  readonly #turns: Turns;
  #isSent = false;

  constructor(account: Account, kind: CallKind, turns: Turns) {
    this.account = account;
    this.#turns = turns;
    this.#ticket = account.quota.begin(kind === 'pull');
  }

  /** From here on it may be counted. */
  sent(): void {
    this.#isSent = true;
  }

  /** The registry has answered. `isSpent`: that the pull limit is reached. */
  answered(status: number, headers: Headers, isSpent: boolean): void {
    this.account.quota.answered(this.#ticket, status, headers, isSpent);
  }

  /** It was not asked, or has not answered. */
  unanswered(error: MirrorError): void {
    const { quota } = this.account;
    if (!this.#isSent || error.refused || unsent.has(errorCode(error.cause) ?? ''))
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
    { retryAfterMs: Math.max(1000, backInMs), refused: true },
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
