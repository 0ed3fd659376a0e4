import { z } from 'zod';
import { parseJson } from '../../oci/json.ts';
import type { Repo } from '../../oci/repo.ts';
import type { Clock } from '../../util/clock.ts';
import { MirrorError, toMirrorError } from '../../util/errors.ts';
import { accountRefused, type Account } from '../accounts/account.ts';
import { identityUser, type Login } from '../accounts/credentials.ts';
import type { NetworkPolicy } from '../http/network-policy.ts';
import { readAtMost, statusFault, type Call, type Response, type Transport } from '../http/transport.ts';
import { basicHeader } from './authorization.ts';

/** A request for a token. */
export interface TokenRequest {
  readonly realm: string;
  readonly service: string | undefined;
  readonly scope: string;
  /** Whether the upstream still names that realm; only then does a refusal count. */
  readonly isCurrent: () => Promise<boolean>;
}

/** A token as issued. */
export interface IssuedToken {
  readonly token: string;
  /** Issued without credentials. */
  readonly isPublic: boolean;
  /** By the monotonic clock, after nine tenths of the token's life. */
  readonly expiresAt: number;
}

export interface TokenServerContext {
  readonly transport: Transport;
  readonly policy: NetworkPolicy;
  readonly clock: Clock;
}

const maxTokenBytes = 1024 * 1024;
const defaultLifeMs = 60_000;
const longestLifeMs = 24 * 60 * 60 * 1000;
const unreadableHoldMs = 1000;

const tokenAnswer = z.object({
  token: z.string().min(1).optional(),
  access_token: z.string().min(1).optional(),
  expires_in: z.coerce.number().optional().catch(undefined),
});

/** Refused by a realm that the upstream does not name (any more), so the refusal says nothing about the repo. */
export class RealmNotCurrent extends MirrorError {}

/**
 * Fetches tokens from the token servers that an upstream names (CNCF Distribution, "Token Authentication
 * Specification"): by GET with Basic, or by an OAuth2 POST if the login or the server needs one. Caches no tokens.
 */
export class TokenServer {
  readonly #registry: string;
  readonly #transport: Transport;
  readonly #policy: NetworkPolicy;
  readonly #clock: Clock;
  /** A token server that sent an unusable answer is not asked for a moment. */
  #unreadable: { readonly error: MirrorError; readonly until: number } | undefined;

  constructor(registry: string, { transport, policy, clock }: TokenServerContext) {
    this.#registry = registry;
    this.#transport = transport;
    this.#policy = policy;
    this.#clock = clock;
  }

  /**
   * Fetches one token. Throws `account-refused` if the login is rejected altogether, `repo-unknown` if only this scope
   * is refused, RealmNotCurrent if the upstream does not name that realm, and the faults of a call.
   */
  async fetch(
    request: TokenRequest,
    account: Account,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<IssuedToken> {
    const { realm, service, scope } = request;
    const url = this.#policy.checkRealm(realm);
    const what = `GET ${this.#registry} token for ${scope}`;
    if (this.#unreadable && this.#clock.monotonic() < this.#unreadable.until) throw this.#unreadable.error;
    for (let tries = 1; ; tries++) {
      const login = await account.login();
      const sentAt = this.#clock.monotonic();
      const response = await this.#send(url, { service, scope }, login, what, repo, signal);
      if (response.status === 200) {
        const { token, lifeMs } = await this.#read(response, what, signal);
        account.accepted();
        // Leaves a margin for the time in transit.
        const expiresAt = sentAt + lifeMs * 0.9;
        return { token, isPublic: login === undefined, expiresAt };
      }
      response.body.discard();
      const { status } = response;
      const message = `${what}: ${url.host} answered ${status}`;
      if (status !== 401 && status !== 403) throw statusFault(response, message, this.#clock.now());
      if (!(await request.isCurrent()))
        throw new RealmNotCurrent('repo-unknown', `${message}: the upstream no longer names this realm`);
      // ghcr.io and others send 401 for a repo that is unknown or private.
      const isRejected = login && status === 401 && (await this.#rejects(url, service, login, repo, signal));
      if (!isRejected) throw new MirrorError('repo-unknown', `${message}: not found, or not permitted`);
      const error = accountRefused(message, account);
      const hasAnother = await account.rejected(login, error);
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
      const again = new MirrorError(fault, message, { retryAfterMs: unreadableHoldMs, notAsked: true });
      this.#unreadable = { error: again, until: this.#clock.monotonic() + unreadableHoldMs };
      throw error;
    }
  }

  /** Whether the token server rejects the login altogether: asks for a token without a scope. */
  async #rejects(
    url: URL,
    service: string | undefined,
    login: Login,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<boolean> {
    const what = `GET ${this.#registry} token without a scope`;
    const response = await this.#send(url, { service, scope: undefined }, login, what, repo, signal);
    response.body.discard();
    return response.status === 401;
  }

  async #send(
    realm: URL,
    { service, scope }: { service: string | undefined; scope: string | undefined },
    login: Login | undefined,
    what: string,
    repo: Repo,
    signal: AbortSignal,
  ): Promise<Response> {
    const params = { ...(service !== undefined && { service }), ...(scope !== undefined && { scope }) };
    const send = (call: Pick<Call, 'method' | 'url' | 'headers' | 'form'>): Promise<Response> =>
      this.#transport.send({ ...call, kind: 'token', what, repo, signal });
    const post = (form: Record<string, string>): Promise<Response> =>
      send({
        method: 'POST',
        url: realm,
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
        form: new URLSearchParams({ ...form, client_id: 'layercache', ...params }).toString(),
      });
    if (login?.username === identityUser)
      return post({ grant_type: 'refresh_token', refresh_token: login.password });
    const url = new URL(realm);
    for (const [name, value] of Object.entries(params)) url.searchParams.set(name, value);
    if (login) url.searchParams.set('account', login.username);
    const response = await send({
      method: 'GET',
      url,
      headers: login ? { authorization: basicHeader(login) } : {},
    });
    if (response.status !== 405 || !login) return response;
    // Some servers support only OAuth2.
    response.body.discard();
    return post({ grant_type: 'password', ...login });
  }
}

async function readToken(
  response: Response,
  what: string,
  signal: AbortSignal,
): Promise<{ token: string; lifeMs: number }> {
  const bytes = await readAtMost({ what, signal }, response.body, maxTokenBytes);
  let json: unknown;
  try {
    json = parseJson(bytes ?? Buffer.alloc(0));
  } catch {
    // No cause: a parser's message quotes its input, which may hold a token.
    throw new MirrorError('upstream-down', `${what}: the response is not JSON`);
  }
  const answer = tokenAnswer.safeParse(json).data;
  const token = answer?.token ?? answer?.access_token;
  if (token === undefined || /[^\x21-\x7e]/.test(token)) {
    throw new MirrorError('upstream-down', `${what}: the response has no token`);
  }
  const life = (answer?.expires_in ?? 0) * 1000;
  return { token, lifeMs: life > 0 ? Math.min(life, longestLifeMs) : defaultLifeMs };
}
