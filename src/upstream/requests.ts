import { parseUnsatisfied } from '../oci/range.ts';
import type { Repo } from '../oci/repo.ts';
import type { Ledger } from '../telemetry/ledger.ts';
import type { Logger } from '../telemetry/log.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import type { Budget } from '../util/budget.ts';
import type { Clock } from '../util/clock.ts';
import { MirrorError, toMirrorError } from '../util/errors.ts';
import { Flight } from '../util/flight.ts';
import type { AccountPool } from './accounts/account-pool.ts';
import { quotaSpent, type Account } from './accounts/account.ts';
import { Attempts, type Attempt } from './accounts/attempts.ts';
import { Authenticator } from './auth/authenticator.ts';
import { noAuthorization, type Authorization } from './auth/authorization.ts';
import { Breakers } from './http/breaker.ts';
import { headerOf } from './http/headers.ts';
import { NetworkPolicy, type NetworkPolicyOptions } from './http/network-policy.ts';
import {
  isPull,
  isPullLimit,
  statusFault,
  Transport,
  urlBelow,
  type Response,
  type TransportOptions,
} from './http/transport.ts';
import { manifestRequest, type RepoRequest } from './repo-requests.ts';
import { isWebPage, lacksScope, type FinalResponse, type Provenance } from './responses.ts';
import { tryTwice } from './try-twice.ts';

export interface UpstreamOptions extends NetworkPolicyOptions, TransportOptions {
  /** `docker.io` */
  registry: string;
  /** The configured name or pattern, used in metrics. */
  name: string;
  maxManifestBytes: number;
  /** The upstream knows the mirror without a login, for example by address: its answers are private. */
  private: boolean;
  /** Timeout of everything before the first byte of a response. */
  firstByteTimeoutMs: number;
}

export interface UpstreamContext {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  readonly log: Logger;
  readonly accounts: AccountPool;
  /** The mirror's name in `Via`. */
  readonly pseudonym: string;
  /** Memory for manifests and lists being read, and for manifests until they are stored. */
  readonly documents: Budget;
}

const notFoundFaults = {
  manifest: 'manifest-unknown',
  blob: 'blob-unknown',
  tags: 'repo-unknown',
  referrers: 'manifest-unknown',
  // Not requested by clients.
  token: 'repo-unknown',
  ping: 'repo-unknown',
} as const;
const maxRedirects = 5;
/** Values of `X-Cache` that another Layercache sends. */
const cacheResults = /^(?:hit|joined|miss|revalidated|stale)$/;
const pingEveryMs = 10_000;
const redirects = new Set([301, 302, 303, 307, 308]);
// Status codes of servers that do not support HEAD; a GET then decides.
const headRefusals = new Set([400, 403, 405, 501]);

/**
 * Sends requests to one upstream: chooses account and token, follows redirects, and maps status codes to faults.
 * `signal` of a request is the deadline of everything before the first byte.
 */
export class Requests {
  readonly #base: URL;
  readonly #isPrivate: boolean;
  readonly #clock: Clock;
  readonly #accounts: AccountPool;
  readonly #policy: NetworkPolicy;
  readonly #breakers: Breakers;
  readonly #transport: Transport;
  readonly #authenticator: Authenticator;
  #pingedAt = -Infinity;
  readonly #firstProbe = new Flight<'first', undefined>();

  constructor(options: UpstreamOptions, context: UpstreamContext) {
    const { registry, url, maxRemembered } = options;
    const { clock, log } = context;
    this.#base = url;
    this.#isPrivate = options.private;
    this.#clock = clock;
    this.#accounts = context.accounts;
    const policy = new NetworkPolicy(options);
    this.#policy = policy;
    const breakers = new Breakers(clock, maxRemembered, (host, fault) => {
      if (fault) log.warn({ registry, host, fault }, 'circuit open: host not called');
      else log.info({ registry, host }, 'circuit closed: host answers again');
    });
    this.#breakers = breakers;
    const transport = new Transport(options.name, options, { ...context, breakers, policy });
    this.#transport = transport;
    const sharedTimeoutMs = Math.min(options.headersTimeoutMs, options.firstByteTimeoutMs);
    const auth = { transport, policy, clock, maxRemembered, sharedTimeoutMs };
    this.#authenticator = new Authenticator(registry, url, auth);
  }

  /** Number of open circuits: the registry itself, and other hosts it leads to. */
  get openCircuits(): { own: number; others: number } {
    return {
      own: this.#breakers.countOpen((origin) => origin === this.#base.origin),
      others: this.#breakers.countOpen((origin) => origin !== this.#base.origin),
    };
  }

  /**
   * Why no uncached pull can work now; undefined if one can, as far as known. If the registry does not answer, pings
   * it in the background, at most every 10 s, since no other request may do so.
   */
  get obstacle(): string | undefined {
    const { registry } = this.#accounts;
    const fault = this.#breakers.lastFault(this.#base.origin);
    const now = this.#clock.monotonic();
    if (fault && now - this.#pingedAt >= pingEveryMs) {
      this.#pingedAt = now;
      this.#authenticator.probe(AbortSignal.timeout(pingEveryMs)).catch(() => undefined);
    }
    if (fault === 'upstream-limited') return `${registry} limits all requests`;
    if (fault) return `${registry} is unreachable or failing`;
    return this.#accounts.obstacle;
  }

  close(): Promise<void> {
    return this.#transport.close();
  }

  sendWithRetry(request: RepoRequest): Promise<FinalResponse> {
    return tryTwice(() => this.send(request));
  }

  /** Sends the request to the redirect target used before. Undefined: the link is not valid any more. */
  async sendToLink(
    request: RepoRequest,
    { url, isPublic }: Provenance & { url: URL },
  ): Promise<FinalResponse | undefined> {
    const response = await this.#transport.send({ ...request, url, redirected: true });
    const { status } = response;
    const fault = this.#faultOf(request, response);
    if (status < 300 && !fault) return { ...response, url, isPublic };
    response.body.discard();
    if (fault && (status === 429 || status >= 500)) throw fault;
    return undefined;
  }

  /**
   * Refreshes the pull quota by HEAD, which does not count as a pull: before the first pull, and now and then while no
   * pulls are left.
   */
  async refreshQuota(repo: Repo, reference: string, signal: AbortSignal): Promise<void> {
    if (!this.#accounts.isQuotaKnown(repo)) {
      // The first request learns the quota; parallel pulls before that could exceed it.
      const request = manifestRequest('HEAD', repo, reference, signal);
      const first = async (): Promise<undefined> => {
        (await this.send(request)).body.discard();
      };
      await this.#firstProbe.run('first', first).outcome.catch(() => undefined);
    }
    const probes = this.#accounts.dueForProbe(repo).map(async (account) => {
      const request = manifestRequest('HEAD', repo, reference, signal);
      const response = await this.#sendWithAccounts(request, this.#attempts(request, false, [account]));
      response.body.discard();
    });
    // Results are in the quotas; a failed probe says nothing.
    await Promise.allSettled(probes);
  }

  #attempts(request: RepoRequest, isPull: boolean, accounts?: readonly Account[]): Attempts {
    return new Attempts(this.#accounts, { isPull, repo: request.repo, what: request.what }, accounts);
  }

  /** Returns 200 or 206, 416 for a range, or a refusal of HEAD; throws the fault of any other status. */
  send(request: RepoRequest): Promise<FinalResponse> {
    return this.#sendWithAccounts(request, this.#attempts(request, isPull(request)));
  }

  /** Tries one account after another, while another may succeed. */
  async #sendWithAccounts(request: RepoRequest, attempts: Attempts): Promise<FinalResponse> {
    for (;;) {
      const attempt = attempts.next();
      let response: FinalResponse;
      try {
        response = await this.#sendAs(attempt, request);
      } catch (error) {
        const fault = toMirrorError(error);
        attempt.unanswered(fault);
        if (attempt.failed(fault)) continue;
        throw error;
      }
      // Only the registry's own answers about manifests count; other hosts have limits of their own.
      const isCounted = request.kind === 'manifest' && response.url.origin === this.#base.origin;
      const isSpent = isCounted && isPullLimit(request, response);
      attempt.answered(response.status, isCounted ? response.headers : undefined, isSpent);
      const fault = isSpent ? quotaSpent(request.what, [attempt.account]) : this.#faultOf(request, response);
      if (!fault) {
        attempt.succeeded(response.isPublic);
        return this.#isPrivate || this.#isFromLayercache(response)
          ? { ...response, isPublic: false }
          : response;
      }
      response.body.discard();
      if (!attempt.failed(fault)) throw fault;
    }
  }

  /** Whether another Layercache responded: its account may read private content, so the content counts as private. */
  #isFromLayercache({ url, headers }: FinalResponse): boolean {
    return url.origin === this.#base.origin && cacheResults.test(headerOf(headers, 'x-cache') ?? '');
  }

  async #sendAs(attempt: Attempt, request: RepoRequest): Promise<FinalResponse> {
    const { account } = attempt;
    const { repo, signal } = request;
    let authorization = await this.#authenticator.authorize(account, repo, signal);
    attempt.sent();
    let response = await this.#follow(request, authorization);
    const isReused = !authorization.fresh && authorization.header !== undefined;
    if (response.status === 401 && isReused && !lacksScope(response)) {
      // Some registries answer an expired token with a challenge for another realm: get the challenge without a token.
      response.body.discard();
      this.#authenticator.drop(account, repo);
      authorization = noAuthorization;
      response = await this.#follow(request, authorization);
    }
    if (response.status === 401) {
      response.body.discard();
      const next = await this.#authenticator.challenged(response, account, repo, signal);
      if (next && next.challenge !== authorization.challenge) response = await this.#follow(request, next);
      else if (next?.challenge === 'basic') await this.#authenticator.checkBasic(account, signal);
    }
    return response;
  }

  async #follow(request: RepoRequest, { header, isPublic }: Authorization): Promise<FinalResponse> {
    let url = urlBelow(this.#base, request.path);
    for (let hops = 0; ; hops++) {
      const isOwn = url.origin === this.#base.origin && header !== undefined;
      const headers = isOwn ? { ...request.headers, authorization: header } : request.headers;
      const response = await this.#transport.send({ ...request, url, headers, redirected: hops > 0 });
      if (
        url.origin !== this.#base.origin &&
        (response.status === 400 || response.status === 401 || response.status === 403)
      ) {
        response.body.discard();
        // Signed links are often valid for GET only.
        if (request.method === 'HEAD') return { ...response, url, isPublic, status: 403 };
        throw new MirrorError('redirect-refused', `${request.what}: ${url.host} answered ${response.status}`);
      }
      if (!redirects.has(response.status)) return { ...response, url, isPublic };
      response.body.discard();
      if (hops === maxRedirects)
        throw new MirrorError('upstream-invalid', `${request.what}: more than ${maxRedirects} redirects`);
      const next = URL.parse(headerOf(response.headers, 'location') ?? '', url);
      if (!next || next.href === url.href) {
        throw new MirrorError(
          'upstream-invalid',
          `${request.what}: ${url.host} redirects to an invalid location`,
        );
      }
      this.#policy.checkRedirect(url, next);
      url = next;
    }
  }

  #faultOf({ what, kind, method, path }: RepoRequest, response: Response): MirrorError | undefined {
    const { status, headers } = response;
    if (status === 200 || status === 206) {
      const coding = headerOf(headers, 'content-encoding');
      if (coding === undefined || coding === 'identity') return undefined;
      return new MirrorError(
        'upstream-invalid',
        `${what}: unexpected Content-Encoding ${JSON.stringify(coding)}`,
      );
    }
    if (status === 416 && parseUnsatisfied(headerOf(headers, 'content-range')) !== undefined)
      return undefined;
    if (status === 404) return new MirrorError(notFoundFaults[kind], `${what}: not found`);
    // An upstream that does not support the endpoint has no such list.
    if (kind === 'referrers' && (status === 405 || status === 501))
      return new MirrorError('manifest-unknown', `${what}: the upstream answered ${status}`);
    if (kind === 'referrers' && (status === 400 || status === 406))
      return new MirrorError('repo-unknown', `${what}: the upstream answered ${status}`);
    if (kind === 'tags' && status === 400 && path.includes('?') && !isWebPage(response))
      return new MirrorError('page-invalid', `${what}: the upstream refuses this page (400)`);
    if (method === 'HEAD' && headRefusals.has(status)) return undefined;
    if (status === 401 || status === 403) {
      return new MirrorError(
        'repo-unknown',
        `${what}: not found, or not permitted (the upstream answered ${status})`,
      );
    }
    return statusFault(response, `${what}: the upstream answered ${status}`, this.#clock.now());
  }
}
