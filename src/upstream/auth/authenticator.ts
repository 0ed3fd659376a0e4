import type { Repo } from '../../oci/repo.ts';
import type { Clock } from '../../util/clock.ts';
import { untilAborted } from '../../util/deadline.ts';
import { toMirrorError, type Fault } from '../../util/errors.ts';
import { Flight } from '../../util/flight.ts';
import { accountRefused, type Account } from '../accounts/account.ts';
import type { NetworkPolicy } from '../http/network-policy.ts';
import { statusFault, toFault, urlBelow, type Response, type Transport } from '../http/transport.ts';
import { basicHeader, noAuthorization, type Authorization } from './authorization.ts';
import { parseChallenges, schemeOf, type Scheme } from './challenge.ts';
import { RealmNotCurrent, TokenServer } from './token-server.ts';
import { Tokens } from './tokens.ts';

export interface AuthenticatorContext {
  readonly transport: Transport;
  /** Timeout in ms of work shared by several callers with deadlines of their own. */
  readonly sharedTimeoutMs: number;
  readonly policy: NetworkPolicy;
  readonly clock: Clock;
  /** How many repos to keep tokens for. */
  readonly maxRemembered: number;
}

const confirmationTtlMs = 10_000;

/**
 * The authorizations for one upstream, by its challenges. Learns the scheme once from `/v2/`; after that fetches
 * tokens before the upstream asks for them.
 */
export class Authenticator {
  readonly #registry: string;
  readonly #base: URL;
  readonly #transport: Transport;
  readonly #clock: Clock;
  readonly #tokens: Tokens;
  readonly #pings = new Flight<'ping', Scheme | undefined>();
  readonly #sharedTimeoutMs: number;
  #scheme: Scheme | undefined;
  /** The scheme whose realm the upstream last confirmed, and until when the confirmation counts. */
  #confirmed: { readonly scheme: Scheme; readonly until: number } | undefined;

  constructor(registry: string, base: URL, context: AuthenticatorContext) {
    const { transport, policy, clock, sharedTimeoutMs, maxRemembered } = context;
    this.#registry = registry;
    this.#base = base;
    this.#transport = transport;
    this.#clock = clock;
    this.#sharedTimeoutMs = sharedTimeoutMs;
    const server = new TokenServer(registry, { transport, policy, clock });
    this.#tokens = new Tokens({ server, clock, sharedTimeoutMs, maxRemembered });
  }

  /** The authorization to send before any challenge. Throws the token server's faults. */
  async authorize(account: Account, repo: Repo, signal: AbortSignal): Promise<Authorization> {
    this.#scheme ??= await within(
      signal,
      this.#pings.run('ping', () => this.#ping(AbortSignal.timeout(this.#sharedTimeoutMs))).outcome,
    );
    if (!this.#scheme) return noAuthorization;
    const cached = this.#tokens.cached(account, repo);
    if (cached) return cached;
    const learnt = this.#scheme;
    try {
      return await this.#authorizationFor(learnt, undefined, account, repo, signal, () =>
        this.#isCurrent(learnt),
      );
    } catch (error) {
      const { notAsked, fault } = toMirrorError(error);
      if (
        notAsked ||
        (fault === 'repo-unknown' && !(error instanceof RealmNotCurrent)) ||
        isAccountFault(fault)
      )
        throw error;
      // The learnt scheme may be wrong or outdated: send the request without it and let its challenge decide.
      this.#scheme = undefined;
      if (error instanceof RealmNotCurrent || fault === 'upstream-invalid') return noAuthorization;
      throw error;
    }
  }

  /** Whether the upstream still names this realm; if it does not answer, assumes so. */
  async #isCurrent(learnt: Scheme): Promise<boolean> {
    const now = this.#clock.monotonic();
    if (this.#confirmed?.scheme === learnt && now < this.#confirmed.until) return true;
    const ping = (): Promise<Scheme | undefined> => this.#ping(AbortSignal.timeout(this.#sharedTimeoutMs));
    const current = await this.#pings.run('ping', ping).outcome.catch(() => undefined);
    if (current && current.bearer?.realm !== learnt.bearer?.realm) return false;
    this.#confirmed = { scheme: learnt, until: this.#clock.monotonic() + confirmationTtlMs };
    return true;
  }

  /** The authorization for a 401's challenges; undefined if none is possible. */
  async challenged(
    response: Response,
    account: Account,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<Authorization | undefined> {
    const challenges = parseChallenges(response.headers['www-authenticate']);
    const scheme = schemeOf(challenges);
    const scope = challenges.find(({ scheme: name }) => name === 'bearer')?.params['scope'];
    const answer = await this.#authorizationFor(scheme, scope, account, repo, signal);
    if (answer.header === undefined) return undefined;
    // Kept only if it worked: a bad challenge for one repo must not affect the others.
    this.#scheme = scheme;
    return answer;
  }

  /** Drops a token that the upstream rejected. */
  drop(account: Account, repo: Repo): void {
    this.#tokens.drop(account, repo);
  }

  /**
   * Basic got a 401: throws `account-refused` if `/v2/` rejects the login too; else it only lacks access to the repo.
   */
  async checkBasic(account: Account, signal: AbortSignal): Promise<void> {
    const login = await within(signal, account.login());
    if (!login) return;
    const response = await this.#sendPing({ authorization: basicHeader(login) }, signal);
    if (response.status !== 401) return;
    const error = accountRefused(`GET ${this.#registry} /v2/: ${this.#base.host} answered 401`, account);
    await account.rejected(login, error);
    throw error;
  }

  /** Pings the registry to update its circuit breaker. */
  async probe(signal: AbortSignal): Promise<void> {
    await this.#sendPing({}, signal);
  }

  /** The scheme from `/v2/`; undefined on 5xx. Throws `upstream-limited` and the faults of a call. */
  async #ping(signal: AbortSignal): Promise<Scheme | undefined> {
    const response = await this.#sendPing({}, signal);
    const { status } = response;
    if (status === 429) {
      const message = `GET ${this.#registry} /v2/: ${this.#base.host} answered 429`;
      throw statusFault(response, message, this.#clock.now());
    }
    if (status >= 500) return undefined;
    return status === 401
      ? schemeOf(parseChallenges(response.headers['www-authenticate']))
      : { bearer: undefined, basic: false };
  }

  async #sendPing(headers: Readonly<Record<string, string>>, signal: AbortSignal): Promise<Response> {
    const url = urlBelow(this.#base, '/v2/');
    const what = `GET ${this.#registry} /v2/`;
    const call = { method: 'GET', kind: 'ping', url, what, repo: undefined, headers, signal } as const;
    const response = await this.#transport.send(call);
    response.body.discard();
    return response;
  }

  async #authorizationFor(
    scheme: Scheme,
    scope: string | undefined,
    account: Account,
    repo: Repo,
    signal: AbortSignal,
    /** Whether the realm is still the upstream's, so that a refusal counts. */
    isCurrent: () => Promise<boolean> = () => Promise.resolve(true),
  ): Promise<Authorization> {
    const { bearer } = scheme;
    if (!bearer) {
      const login = scheme.basic ? await within(signal, account.login()) : undefined;
      if (!login) return noAuthorization;
      return { header: basicHeader(login), challenge: 'basic', fresh: true, isPublic: false };
    }
    const wanted = scope ?? `repository:${repo.name}:pull`;
    const challenge = [bearer.realm, bearer.service, wanted].join(' ');
    const cached = this.#tokens.cached(account, repo);
    if (cached?.challenge === challenge) return cached;
    const request = { ...bearer, scope: wanted, isCurrent };
    return within(signal, this.#tokens.fetch(challenge, request, account, repo));
  }
}

/** Faults of the token server or of the login, independent of the realm. */
function isAccountFault(fault: Fault): boolean {
  return fault === 'account-refused' || fault === 'upstream-limited';
}

/** Waits for shared work, up to the caller's deadline. */
function within<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return untilAborted(work, signal, () => toFault('authentication', signal.reason, signal));
}
