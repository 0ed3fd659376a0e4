import { LRUCache } from 'lru-cache';
import { z } from 'zod';
import { parseJson } from '../../oci/json.ts';
import type { Repo } from '../../oci/repo.ts';
import type { Clock } from '../../util/clock.ts';
import { orLate } from '../../util/deadline.ts';
import { MirrorError, toMirrorError, type Fault } from '../../util/errors.ts';
import { Flight } from '../../util/flight.ts';
import type { Account } from '../accounts/account.ts';
import { identityUser, type Login } from '../accounts/credentials.ts';
import type { NetworkPolicy } from '../http/network-policy.ts';
import {
  statusFault,
  toFault,
  urlBelow,
  type Call,
  type Response,
  type Transport,
} from '../http/transport.ts';
import { parseChallenges, type Challenge } from './challenge.ts';

/** What to send as `Authorization`, and where it came from. */
export interface Authorization {
  readonly header: string | undefined;
  /** The challenge that it answers; a repeated one, refused, means that the repo is not for us. */
  readonly challenge: string;
  readonly fresh: boolean;
  /** No credentials are behind it: whoever asks gets the same. */
  readonly isPublic: boolean;
}

export const noAuthorization: Authorization = {
  header: undefined,
  challenge: '',
  fresh: false,
  isPublic: true,
};

interface Token {
  readonly header: string;
  readonly challenge: string;
  readonly isPublic: boolean;
  /** By the monotonic clock. */
  readonly expiresAt: number;
}

/** How an upstream wants to be asked. */
interface Scheme {
  readonly bearer: { readonly realm: string; readonly service: string | undefined } | undefined;
  readonly basic: boolean;
}

export interface TokensContext {
  readonly transport: Transport;
  /** Over work that several wait for, each with a deadline of its own. */
  readonly sharedTimeoutMs: number;
  readonly policy: NetworkPolicy;
  readonly clock: Clock;
  /** Repos of which tokens are kept. */
  readonly remembers: number;
}

const maxTokenBytes = 1024 * 1024;
const defaultLifeMs = 60_000;
const longestLifeMs = 24 * 60 * 60 * 1000;
const unreadableForMs = 1000;
const confirmedForMs = 10_000;

const tokenAnswer = z.object({
  token: z.string().min(1).optional(),
  access_token: z.string().min(1).optional(),
  expires_in: z.coerce.number().optional().catch(undefined),
});

/**
 * The authorizations for one upstream. How it wants to be asked is learnt once, from `/v2/`; after that tokens are
 * fetched before they are asked for, one for each account and repo, and used until shortly before they expire. Life is
 * counted from receipt by the monotonic clock, since `issued_at` is the other side's idea of the time.
 */
export class Tokens {
  readonly #registry: string;
  readonly #base: URL;
  readonly #transport: Transport;
  readonly #policy: NetworkPolicy;
  readonly #clock: Clock;
  readonly #tokens: LRUCache<string, Token>;
  readonly #flights = new Flight<string, Token>();
  readonly #pings = new Flight<'ping', Scheme | undefined>();
  readonly #sharedTimeoutMs: number;
  /** The first tries with a login, one for each account: a wrong one is sent once, and not for each repo. */
  readonly #trials = new Map<Account, Promise<unknown>>();
  #scheme: Scheme | undefined;
  /** Where it was last said that the realm is still the same. */
  #confirmed: { readonly scheme: Scheme; readonly until: number } | undefined;
  /** A token server that answers with something else is left alone for a moment. */
  #unreadable: { readonly error: MirrorError; readonly until: number } | undefined;

  constructor(registry: string, base: URL, context: TokensContext) {
    const { transport, policy, clock, sharedTimeoutMs, remembers } = context;
    this.#tokens = new LRUCache({ max: remembers });
    this.#sharedTimeoutMs = sharedTimeoutMs;
    this.#registry = registry;
    this.#base = base;
    this.#transport = transport;
    this.#policy = policy;
    this.#clock = clock;
  }

  /** The authorization for a repo before anybody has asked for one. */
  async authorize(account: Account, repo: Repo, signal: AbortSignal): Promise<Authorization> {
    this.#scheme ??= await within(
      signal,
      this.#pings.run('ping', () => this.#ping(AbortSignal.timeout(this.#sharedTimeoutMs))).outcome,
    );
    if (!this.#scheme) return noAuthorization;
    // Whatever scope it was made for: the upstream has asked for that one.
    const kept = this.#kept(account, repo);
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
    this.#tokens.delete(keyOf(account, repo));
  }

  /** Basic was answered with 401: whether it is the login that is not taken, or just not enough. */
  async checkBasic(account: Account, signal: AbortSignal): Promise<void> {
    const login = await within(signal, account.login());
    if (!login) return;
    const response = await this.#askPing({ authorization: basic(login) }, signal);
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
      return { header: basic(login), challenge: 'basic', fresh: true, isPublic: false };
    }
    const wanted = scope ?? `repository:${repo.name}:pull`;
    const challenge = [bearer.realm, bearer.service, wanted].join(' ');
    const kept = this.#kept(account, repo);
    if (kept?.challenge === challenge) return kept;
    const key = keyOf(account, repo);
    const fetch = async (): Promise<Token> => {
      const shared = AbortSignal.timeout(this.#sharedTimeoutMs);
      const ask = () =>
        this.#fetchToken({ ...bearer, scope: wanted, challenge, isCurrent }, account, repo, shared);
      const token = await this.#oneFirst(account, ask);
      this.#tokens.set(key, token);
      return token;
    };
    const flight = this.#flights.run(`${key} ${challenge}`, fetch);
    const { header, isPublic } = await within(signal, flight.outcome);
    return { header, challenge, fresh: true, isPublic };
  }

  #kept(account: Account, repo: Repo): Authorization | undefined {
    const token = this.#tokens.get(keyOf(account, repo));
    if (!token || token.expiresAt <= this.#clock.monotonic()) return undefined;
    return { header: token.header, challenge: token.challenge, fresh: false, isPublic: token.isPublic };
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

  async #fetchToken(
    wanted: {
      realm: string;
      service: string | undefined;
      scope: string;
      challenge: string;
      isCurrent: () => Promise<boolean>;
    },
    account: Account,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<Token> {
    const { realm, service, scope, challenge } = wanted;
    const url = this.#policy.checkRealm(realm);
    const what = `GET ${this.#registry} token for ${scope}`;
    if (this.#unreadable && this.#clock.monotonic() < this.#unreadable.until) throw this.#unreadable.error;
    for (let tries = 1; ; tries++) {
      const login = await account.login();
      const asked = this.#clock.monotonic();
      const response = await this.#askToken(url, { service, scope }, login, what, repo, signal);
      if (response.status === 200) {
        const { token, lifeMs } = await this.#read(response, what, signal);
        account.accepted();
        // A tenth of its life before the end, since it still has to travel.
        const expiresAt = asked + lifeMs * 0.9;
        return { header: `Bearer ${token}`, challenge, isPublic: login === undefined, expiresAt };
      }
      response.body.discard();
      const { status } = response;
      const message = `${what}: ${url.host} answered ${status}`;
      if (status !== 401 && status !== 403) throw statusFault(response, message, this.#clock.now());
      if (!(await wanted.isCurrent())) throw new NotCurrent('repo-unknown', `${message}: it has moved`);
      // Some token servers answer so for a repo that is unknown or private (ghcr.io).
      const isRefused = login && status === 401 && (await this.#refuses(url, service, login, repo, signal));
      if (!isRefused) throw new MirrorError('repo-unknown', `${message}: not found, or not permitted`);
      const error = accountRefused(message, account);
      const hasAnother = await account.refused(login, error);
      if (!hasAnother || tries === 2) throw error;
    }
  }

  async #read(
    response: Response,
    what: string,
    signal: AbortSignal,
  ): Promise<{ token: string; lifeMs: number }> {
    try {
      return await readToken(response, what, signal);
    } catch (error) {
      const { fault, message } = toMirrorError(error);
      const again = new MirrorError(fault, message, { retryAfterMs: unreadableForMs, notAsked: true });
      this.#unreadable = { error: again, until: this.#clock.monotonic() + unreadableForMs };
      throw error;
    }
  }

  /** Whether the token server does not take the login for anything. */
  async #refuses(
    url: URL,
    service: string | undefined,
    login: Login,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<boolean> {
    const what = `GET ${this.#registry} token without a scope`;
    const response = await this.#askToken(url, { service, scope: undefined }, login, what, repo, signal);
    response.body.discard();
    return response.status === 401;
  }

  async #askToken(
    realm: URL,
    { service, scope }: { service: string | undefined; scope: string | undefined },
    login: Login | undefined,
    what: string,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<Response> {
    const question = { ...(service !== undefined && { service }), ...(scope !== undefined && { scope }) };
    const ask = (call: Pick<Call, 'method' | 'url' | 'headers' | 'form'>): Promise<Response> =>
      this.#transport.send({ ...call, kind: 'token', what, repo, signal });
    const post = (form: Record<string, string>): Promise<Response> =>
      ask({
        method: 'POST',
        url: realm,
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
        form: new URLSearchParams({ ...form, client_id: 'layercache', ...question }).toString(),
      });
    if (login?.username === identityUser)
      return post({ grant_type: 'refresh_token', refresh_token: login.password });
    const url = new URL(realm);
    for (const [name, value] of Object.entries(question)) url.searchParams.set(name, value);
    if (login) url.searchParams.set('account', login.username);
    const response = await ask({ method: 'GET', url, headers: login ? { authorization: basic(login) } : {} });
    if (response.status !== 405 || !login) return response;
    // Some take OAuth alone.
    response.body.discard();
    return post({ grant_type: 'password', ...login });
  }
}

/** A realm has refused to which the upstream does not send everybody, or not any more: that says nothing. */
class NotCurrent extends MirrorError {}

/** Faults of the token server or of our login, whichever realm it is. */
function isOwnAffair(fault: Fault): boolean {
  return fault === 'account-refused' || fault === 'upstream-limited';
}

/** What is waited for, but no longer than one's own deadline. */
function within<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return orLate(work, signal, () => toFault('authentication', signal.reason, signal));
}

function keyOf(account: Account, repo: Repo): string {
  return `${account.name} ${repo.key}`;
}

function schemeOf(challenges: readonly Challenge[]): Scheme {
  const params = challenges.find((each) => each.scheme === 'bearer' && each.params['realm'])?.params;
  const realm = params?.['realm'];
  return {
    bearer: realm === undefined ? undefined : { realm, service: params?.['service'] },
    basic: challenges.some(({ scheme }) => scheme === 'basic'),
  };
}

function basic({ username, password }: Login): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
}

function accountRefused(message: string, { name }: Account): MirrorError {
  return new MirrorError('account-refused', `${message}: it refuses the account ${name}`);
}

async function readToken(
  response: Response,
  what: string,
  signal: AbortSignal,
): Promise<{ token: string; lifeMs: number }> {
  const bytes = await response.body.bytes(maxTokenBytes, signal).catch((cause: unknown) => {
    throw toFault(what, cause, signal);
  });
  let json: unknown;
  try {
    json = parseJson(bytes ?? Buffer.alloc(0));
  } catch {
    // No cause: a parser's message quotes what it read, and that may be a token.
    throw new MirrorError('upstream-down', `${what}: the answer is not JSON`);
  }
  const answer = tokenAnswer.safeParse(json).data;
  const token = answer?.token ?? answer?.access_token;
  if (token === undefined || /[^\x21-\x7e]/.test(token)) {
    throw new MirrorError('upstream-down', `${what}: the answer has no token`);
  }
  const life = (answer?.expires_in ?? 0) * 1000;
  return { token, lifeMs: life > 0 ? Math.min(life, longestLifeMs) : defaultLifeMs };
}
