import type { Repo } from '../../oci/repo.ts';
import type { Clock } from '../../util/clock.ts';
import { orLate } from '../../util/deadline.ts';
import { toMirrorError, type Fault } from '../../util/errors.ts';
import { Flight } from '../../util/flight.ts';
import { accountRefused, type Account } from '../accounts/account.ts';
import type { NetworkPolicy } from '../http/network-policy.ts';
import { statusFault, toFault, urlBelow, type Response, type Transport } from '../http/transport.ts';
import { basicHeader, noAuthorization, type Authorization } from './authorization.ts';
import { parseChallenges, schemeOf, type Scheme } from './challenge.ts';
import { NotCurrent, TokenServer } from './token-server.ts';
import { Tokens } from './tokens.ts';

export interface AuthenticatorContext {
  readonly transport: Transport;
  /** Over work that several wait for, each with a deadline of its own. */
  readonly sharedTimeoutMs: number;
  readonly policy: NetworkPolicy;
  readonly clock: Clock;
  /** Repos of which tokens are kept. */
  readonly remembers: number;
}

const confirmedForMs = 10_000;

/**
 * The authorizations for one upstream: what its challenges lead to. How it wants to be asked is learnt once, from `/v2/`;
 * after that tokens are fetched before they are asked for.
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
  /** Where it was last said that the realm is still the same. */
  #confirmed: { readonly scheme: Scheme; readonly until: number } | undefined;

  constructor(registry: string, base: URL, context: AuthenticatorContext) {
    const { transport, policy, clock, sharedTimeoutMs, remembers } = context;
    this.#registry = registry;
    this.#base = base;
    this.#transport = transport;
    this.#clock = clock;
    this.#sharedTimeoutMs = sharedTimeoutMs;
    const server = new TokenServer(registry, { transport, policy, clock });
    this.#tokens = new Tokens({ server, clock, sharedTimeoutMs, remembers });
  }

  /** The authorization for a repo before anybody has asked for one. */
  async authorize(account: Account, repo: Repo, signal: AbortSignal): Promise<Authorization> {
    this.#scheme ??= await within(
      signal,
      this.#pings.run('ping', () => this.#ping(AbortSignal.timeout(this.#sharedTimeoutMs))).outcome,
    );
    if (!this.#scheme) return noAuthorization;
    const kept = this.#tokens.kept(account, repo);
    if (kept) return kept;
    const learnt = this.#scheme;
    try {
      return await this.#answer(learnt, undefined, account, repo, signal, () => this.#isCurrent(learnt));
    } catch (error) {
      const { notAsked, fault } = toMirrorError(error);
      if (notAsked || (fault === 'repo-unknown' && !(error instanceof NotCurrent)) || isOwnAffair(fault))
        throw error;
      // What was learnt may have been wrong, or be so no longer: the answer to the question itself says how it is.
      this.#scheme = undefined;
      if (error instanceof NotCurrent || fault === 'upstream-invalid') return noAuthorization;
      throw error;
    }
  }

  /** Whether the upstream itself still sends everybody to this realm; where it does not tell, it does. */
  async #isCurrent(learnt: Scheme): Promise<boolean> {
    const now = this.#clock.monotonic();
    if (this.#confirmed?.scheme === learnt && now < this.#confirmed.until) return true;
    const ping = (): Promise<Scheme | undefined> => this.#ping(AbortSignal.timeout(this.#sharedTimeoutMs));
    const said = await this.#pings.run('ping', ping).outcome.catch(() => undefined);
    if (said && said.bearer?.realm !== learnt.bearer?.realm) return false;
    this.#confirmed = { scheme: learnt, until: this.#clock.monotonic() + confirmedForMs };
    return true;
  }

  /** The authorization that a 401's challenges ask for; undefined when there is none that we can give. */
  async challenged(
    response: Response,
    account: Account,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<Authorization | undefined> {
    const challenges = parseChallenges(response.headers['www-authenticate']);
    const scheme = schemeOf(challenges);
    const scope = challenges.find(({ scheme: name }) => name === 'bearer')?.params['scope'];
    const answer = await this.#answer(scheme, scope, account, repo, signal);
    if (answer.header === undefined) return undefined;
    // Only now: a challenge that leads nowhere must not stand between us and all other repos.
    this.#scheme = scheme;
    return answer;
  }

  /** The upstream did not take it. */
  drop(account: Account, repo: Repo): void {
    this.#tokens.drop(account, repo);
  }

  /** Basic was answered with 401: whether it is the login that is not taken, or just not enough. */
  async checkBasic(account: Account, signal: AbortSignal): Promise<void> {
    const login = await within(signal, account.login());
    if (!login) return;
    const response = await this.#askPing({ authorization: basicHeader(login) }, signal);
    if (response.status !== 401) return;
    const error = accountRefused(`GET ${this.#registry} /v2/: ${this.#base.host} answered 401`, account);
    await account.refused(login, error);
    throw error;
  }

  /** Whether the registry answers at all: its gate is told. */
  async look(signal: AbortSignal): Promise<void> {
    await this.#askPing({}, signal);
  }

  /** Undefined: it does not tell now; the answer to the question itself will. */
  async #ping(signal: AbortSignal): Promise<Scheme | undefined> {
    const response = await this.#askPing({}, signal);
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

  async #askPing(headers: Readonly<Record<string, string>>, signal: AbortSignal): Promise<Response> {
    const url = urlBelow(this.#base, '/v2/');
    const what = `GET ${this.#registry} /v2/`;
    const call = { method: 'GET', kind: 'ping', url, what, repo: undefined, headers, signal } as const;
    const response = await this.#transport.send(call);
    response.body.discard();
    return response;
  }

  async #answer(
    scheme: Scheme,
    scope: string | undefined,
    account: Account,
    repo: Repo,
    signal: AbortSignal,
    /** Whether a refusal says anything. */
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
    const kept = this.#tokens.kept(account, repo);
    if (kept?.challenge === challenge) return kept;
    const question = { ...bearer, scope: wanted, isCurrent };
    return within(signal, this.#tokens.fetch(challenge, question, account, repo));
  }
}

/** Faults of the token server or of our login, whichever realm it is. */
function isOwnAffair(fault: Fault): boolean {
  return fault === 'account-refused' || fault === 'upstream-limited';
}

/** What is waited for, but no longer than one's own deadline. */
function within<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return orLate(work, signal, () => toFault('authentication', signal.reason, signal));
}
