import { LRUCache } from 'lru-cache';
import type { Repo } from '../../oci/repo.ts';
import type { Clock } from '../../util/clock.ts';
import { Flight } from '../../util/flight.ts';
import type { Account } from '../accounts/account.ts';
import type { Authorization } from './authorization.ts';
import type { TokenQuestion, TokenServer } from './token-server.ts';

interface Token {
  readonly header: string;
  /** The challenge that it was fetched for. */
  readonly challenge: string;
  readonly isPublic: boolean;
  /** By the monotonic clock. */
  readonly expiresAt: number;
}

export interface TokensContext {
  readonly server: TokenServer;
  readonly clock: Clock;
  /** Over a call that several wait for, each with a deadline of its own. */
  readonly sharedTimeoutMs: number;
  /** Repos of which tokens are kept. */
  readonly remembers: number;
}

/**
 * The tokens for one upstream: one for each account and repo, used until shortly before it expires, and fetched once
 * however many wait for it. Life is counted from receipt by the monotonic clock, since `issued_at` is the other side's
 * idea of the time.
 */
export class Tokens {
  readonly #server: TokenServer;
  readonly #clock: Clock;
  readonly #sharedTimeoutMs: number;
  readonly #tokens: LRUCache<string, Token>;
  readonly #flights = new Flight<string, Token>();
  /** The first tries with a login, one for each account: a wrong one is sent once, and not for each repo. */
  readonly #trials = new Map<Account, Promise<unknown>>();

  constructor({ server, clock, sharedTimeoutMs, remembers }: TokensContext) {
    this.#server = server;
    this.#clock = clock;
    this.#sharedTimeoutMs = sharedTimeoutMs;
    this.#tokens = new LRUCache({ max: remembers });
  }

  /** The token that is there, whatever scope it was made for: the upstream has asked for that one. */
  kept(account: Account, repo: Repo): Authorization | undefined {
    const token = this.#tokens.get(keyOf(account, repo));
    if (!token || token.expiresAt <= this.#clock.monotonic()) return undefined;
    return { header: token.header, challenge: token.challenge, fresh: false, isPublic: token.isPublic };
  }

  /** A new token for the challenge, or the one that is being fetched for it. Faults: as `TokenServer.ask`. */
  async fetch(
    challenge: string,
    question: TokenQuestion,
    account: Account,
    repo: Repo,
  ): Promise<Authorization> {
    const key = keyOf(account, repo);
    const fetch = async (): Promise<Token> => {
      const shared = AbortSignal.timeout(this.#sharedTimeoutMs);
      const given = await this.#oneFirst(account, () => this.#server.ask(question, account, repo, shared));
      const { token: text, isPublic, expiresAt } = given;
      const token = { header: `Bearer ${text}`, challenge, isPublic, expiresAt };
      this.#tokens.set(key, token);
      return token;
    };
    const { header, isPublic } = await this.#flights.run(`${key} ${challenge}`, fetch).outcome;
    return { header, challenge, fresh: true, isPublic };
  }

  /** The upstream did not take it. */
  drop(account: Account, repo: Repo): void {
    this.#tokens.delete(keyOf(account, repo));
  }

  /** Until an account's login has been taken once, one asks with it and the others wait to see. */
  async #oneFirst<T>(account: Account, ask: () => Promise<T>): Promise<T> {
    for (;;) {
      if (account.disabled) throw account.disabled;
      if (account.isProven) return ask();
      const trial = this.#trials.get(account);
      if (!trial) break;
      await trial.catch(() => undefined);
    }
    const trial = ask().finally(() => this.#trials.delete(account));
    this.#trials.set(account, trial);
    return trial;
  }
}

function keyOf(account: Account, repo: Repo): string {
  return `${account.name} ${repo.key}`;
}
