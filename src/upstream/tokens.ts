import { LRUCache } from 'lru-cache';
import { z } from 'zod';
import type { Repo } from '../oci/repo.ts';
import type { Clock } from '../util/clock.ts';
import { isFault, MirrorError } from '../util/errors.ts';
import { Flight } from '../util/flight.ts';
import { parseChallenges, type Challenge } from './challenge.ts';
import type { NetworkPolicy } from './network-policy.ts';
import { statusFault, toFault, type Response, type Transport } from './transport.ts';

/** A set of upstream credentials. */
export interface Account {
  readonly username: string;
  readonly password: string;
}

/** What to send as `Authorization`, and where it came from. */
export interface Authorization {
  readonly header: string | undefined;
  /** The challenge that it answers; a repeated one, refused, means that the repo is not for us. */
  readonly challenge: string;
  readonly fresh: boolean;
}

interface Token {
  readonly header: string;
  readonly challenge: string;
  /** By the monotonic clock. */
  readonly expiresAt: number;
}

type Scheme =
  | { readonly kind: 'none' }
  | { readonly kind: 'basic' }
  | { readonly kind: 'bearer'; readonly realm: string; readonly service: string | undefined };

const maxTokens = 10_000;
const maxTokenBytes = 1024 * 1024;
const defaultLifeMs = 60_000;
/** Accounts whose password is tried again and again get locked. */
const refusedForMs = 60_000;
const longestLifeMs = 24 * 60 * 60 * 1000;

const tokenAnswer = z.object({
  token: z.string().min(1).optional(),
  access_token: z.string().min(1).optional(),
  expires_in: z.coerce.number().optional().catch(undefined),
});

/**
 * The authorizations for one upstream. How it wants to be asked is learnt once, from `/v2/`; after that tokens are
 * fetched before they are asked for, one for each repo, and used until shortly before they expire. Life is counted from
 * receipt by the monotonic clock, since `issued_at` is the other side's idea of the time.
 */
export class Tokens {
  readonly #registry: string;
  readonly #base: URL;
  readonly #transport: Transport;
  readonly #policy: NetworkPolicy;
  readonly #account: Account | undefined;
  readonly #clock: Clock;
  readonly #tokens = new LRUCache<string, Token>({ max: maxTokens });
  readonly #flights = new Flight<string, Token>();
  readonly #pings = new Flight<'ping', Scheme>();
  #scheme: Scheme | undefined;
  #refusal: MirrorError | undefined;
  #refusedUntil = 0;

  constructor(
    registry: string,
    base: URL,
    context: { transport: Transport; policy: NetworkPolicy; account: Account | undefined; clock: Clock },
  ) {
    this.#registry = registry;
    this.#base = base;
    this.#transport = context.transport;
    this.#policy = context.policy;
    this.#account = context.account;
    this.#clock = context.clock;
  }

  /** The authorization for a repo before anybody has asked for one. */
  async authorize(repo: Repo, signal: AbortSignal): Promise<Authorization> {
    this.#scheme ??= await this.#pings.run('ping', () => this.#ping(signal)).outcome;
    // Whatever scope it was made for: the upstream has asked for that one.
    const kept = this.#kept(repo);
    if (kept) return kept;
    try {
      return await this.#answer(this.#scheme, undefined, repo, signal);
    } catch (error) {
      // What was learnt may have been wrong, or be so no longer.
      if (!isFault(error, 'repo-unknown', 'account-refused', 'upstream-limited')) this.#scheme = undefined;
      throw error;
    }
  }

  /** The authorization that a 401's challenges ask for; undefined when there is none that we can give. */
  async challenged(response: Response, repo: Repo, signal: AbortSignal): Promise<Authorization | undefined> {
    const challenges = parseChallenges(response.headers['www-authenticate']);
    const scheme = this.#schemeOf(challenges);
    if (scheme.kind === 'none') return undefined;
    const scope = challenges.find(({ scheme: name }) => name === 'bearer')?.params['scope'];
    const answer = await this.#answer(scheme, scope, repo, signal);
    // Only now: a challenge that leads nowhere must not stand between us and all other repos.
    this.#scheme = scheme;
    return answer;
  }

  /** The upstream did not take it. */
  drop(repo: Repo): void {
    this.#tokens.delete(repo.key);
  }

  async #ping(signal: AbortSignal): Promise<Scheme> {
    const url = new URL('/v2/', this.#base);
    const what = `GET ${this.#registry} /v2/`;
    const response = await this.#transport.send({
      method: 'GET',
      url,
      kind: 'ping',
      what,
      headers: {},
      signal,
    });
    response.body.discard();
    if (response.status !== 401) return { kind: 'none' };
    return this.#schemeOf(parseChallenges(response.headers['www-authenticate']));
  }

  #schemeOf(challenges: readonly Challenge[]): Scheme {
    const realm = challenges.find(({ scheme, params }) => scheme === 'bearer' && params['realm'])?.params;
    if (realm?.['realm'] !== undefined) {
      return { kind: 'bearer', realm: realm['realm'], service: realm['service'] };
    }
    const basic = this.#account !== undefined && challenges.some(({ scheme }) => scheme === 'basic');
    return { kind: basic ? 'basic' : 'none' };
  }

  async #answer(
    scheme: Scheme,
    scope: string | undefined,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<Authorization> {
    if (scheme.kind === 'none') return { header: undefined, challenge: '', fresh: false };
    if (scheme.kind === 'basic') return { header: this.#basic(), challenge: 'basic', fresh: true };
    const wanted = scope ?? `repository:${repo.name}:pull`;
    const challenge = [scheme.realm, scheme.service, wanted].join(' ');
    const kept = this.#kept(repo);
    if (kept?.challenge === challenge) return kept;
    const fetch = (): Promise<Token> =>
      this.#fetchToken(scheme.realm, scheme.service, wanted, challenge, signal);
    const token = await this.#flights.run(`${repo.key} ${challenge}`, fetch).outcome;
    this.#tokens.set(repo.key, token);
    return { header: token.header, challenge, fresh: true };
  }

  #kept(repo: Repo): Authorization | undefined {
    const token = this.#tokens.get(repo.key);
    if (!token || token.expiresAt <= this.#clock.monotonic()) return undefined;
    return { header: token.header, challenge: token.challenge, fresh: false };
  }

  #basic(): string | undefined {
    if (!this.#account) return undefined;
    const { username, password } = this.#account;
    return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
  }

  async #fetchToken(
    realm: string,
    service: string | undefined,
    scope: string,
    challenge: string,
    signal: AbortSignal,
  ): Promise<Token> {
    if (this.#refusal && this.#clock.monotonic() < this.#refusedUntil) throw this.#refusal;
    const url = this.#policy.checkRealm(realm);
    if (service !== undefined) url.searchParams.set('service', service);
    url.searchParams.set('scope', scope);
    if (this.#account) url.searchParams.set('account', this.#account.username);
    const basic = this.#basic();
    const what = `GET ${this.#registry} token for ${scope}`;
    const call = {
      method: 'GET',
      url,
      kind: 'token',
      what,
      headers: basic ? { authorization: basic } : {},
      signal,
    } as const;
    const asked = this.#clock.monotonic();
    const response = await this.#transport.send(call);
    if (response.status !== 200) {
      response.body.discard();
      throw this.#faultOf(response, `${what}: ${url.host} answered ${response.status}`);
    }
    const { token, lifeMs } = await readToken(response, what, signal);
    // A tenth of its life before the end, since it still has to travel.
    return { header: `Bearer ${token}`, challenge, expiresAt: asked + lifeMs * 0.9 };
  }

  #faultOf(response: Response, message: string): MirrorError {
    const { status } = response;
    if (status === 401 && this.#account) {
      const { username } = this.#account;
      this.#refusal = new MirrorError('account-refused', `${message}: it refuses the account ${username}`);
      this.#refusedUntil = this.#clock.monotonic() + refusedForMs;
      return this.#refusal;
    }
    // Some token servers answer so for a repo that is unknown or private (ghcr.io).
    if (status === 401 || status === 403) {
      return new MirrorError('repo-unknown', `${message}: not found, or not permitted`);
    }
    return statusFault(response, message, this.#clock.now());
  }
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
    json = JSON.parse(bytes?.toString('utf8') ?? '');
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
