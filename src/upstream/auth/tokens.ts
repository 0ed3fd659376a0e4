import { LRUCache } from 'lru-cache';
import type { Repo } from '../../oci/repo.ts';
import type { Clock } from '../../util/clock.ts';
import { Flight } from '../../util/flight.ts';
import type { Account } from '../accounts/account.ts';
import type { Authorization } from './authorization.ts';
import type { TokenRequest, TokenServer } from './token-server.ts';

interface Token {
  readonly header: string;
  /** The challenge that the token answers. */
  readonly challenge: string;
  readonly isPublic: boolean;
  /** By the monotonic clock. */
  readonly expiresAt: number;
}

export interface TokensContext {
  readonly server: TokenServer;
  readonly clock: Clock;
  /** Timeout in ms of a call shared by several callers with deadlines of their own. */
  readonly sharedTimeoutMs: number;
  /** How many repos to keep tokens for. */
  readonly maxRemembered: number;
}

/**
 * The token cache of one upstream, by account and repo. A token is fetched once for all waiting callers and used until
 * shortly before it expires. Expiry is counted from receipt by the monotonic clock, since `issued_at` is by the
 * server's clock.
 */
export class Tokens {
  readonly #server: TokenServer;
  readonly #clock: Clock;
  readonly #sharedTimeoutMs: number;
  readonly #tokens: LRUCache<string, Token>;
  readonly #flights = new Flight<string, Token>();
  /** The first try of each account's login: a wrong login is sent once, not once per repo. */
  readonly #trials = new Map<Account, Promise<unknown>>();

  constructor({ server, clock, sharedTimeoutMs, maxRemembered }: TokensContext) {
    this.#server = server;
    this.#clock = clock;
    this.#sharedTimeoutMs = sharedTimeoutMs;
    this.#tokens = new LRUCache({ max: maxRemembered });
  }

  /** The unexpired token, whatever its scope: the upstream asked for that scope. */
  cached(account: Account, repo: Repo): Authorization | undefined {
    const token = this.#tokens.get(keyOf(account, repo));
    if (!token || token.expiresAt <= this.#clock.monotonic()) return undefined;
    return { header: token.header, challenge: token.challenge, fresh: false, isPublic: token.isPublic };
  }

  /** A new token for the challenge, shared with parallel callers. Throws as `TokenServer.fetch` does. */
  async fetch(
    challenge: string,
    request: TokenRequest,
    account: Account,
    repo: Repo,
  ): Promise<Authorization> {
    const key = keyOf(account, repo);
    const fetch = async (): Promise<Token> => {
      const shared = AbortSignal.timeout(this.#sharedTimeoutMs);
      const issued = await this.#withProvenLogin(account, () =>
        this.#server.fetch(request, account, repo, shared),
      );
      const { token: text, isPublic, expiresAt } = issued;
      const token = { header: `Bearer ${text}`, challenge, isPublic, expiresAt };
      this.#tokens.set(key, token);
      return token;
    };
    const { header, isPublic } = await this.#flights.run(`${key} ${challenge}`, fetch).outcome;
    return { header, challenge, fresh: true, isPublic };
  }

  /** Drops a token that the upstream rejected. */
  drop(account: Account, repo: Repo): void {
    this.#tokens.delete(keyOf(account, repo));
  }

  /** Until an account's login is proven, one caller tries it while the others wait. */
  async #withProvenLogin<T>(account: Account, work: () => Promise<T>): Promise<T> {
    for (;;) {
      if (account.disabled) throw account.disabled;
      if (account.isProven) return work();
      const trial = this.#trials.get(account);
      if (!trial) break;
      await trial.catch(() => undefined);
    }
    const trial = work().finally(() => this.#trials.delete(account));
    this.#trials.set(account, trial);
    return trial;
  }
}

function keyOf(account: Account, repo: Repo): string {
  return `${account.name} ${repo.key}`;
}
