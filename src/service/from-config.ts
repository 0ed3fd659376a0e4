import { isDeepStrictEqual } from 'node:util';
import type { Config, FamilyConfig, UpstreamConfig } from '../config/types.ts';
import { Pool } from '../mirror/fill/connections.ts';
import type { TagPolicy } from '../mirror/tags/freshness.ts';
import type {
  NamedUpstream,
  Upstream,
  UpstreamFamily,
  Upstreams,
  UpstreamsOptions,
} from '../mirror/upstreams.ts';
import { globToRegExp } from '../oci/pattern.ts';
import type { Repo } from '../oci/repo.ts';
import { subjectOf } from '../oci/signatures.ts';
import type { AdminContext } from '../server/admin.ts';
import type { ClientsOptions } from '../server/clients.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Catalog } from '../store/catalog/catalog.ts';
import { operations, type Target } from '../store/operations/operations.ts';
import type { Ledger } from '../telemetry/ledger.ts';
import type { Logger } from '../telemetry/log.ts';
import type { Metrics, UpstreamReadings } from '../telemetry/metrics.ts';
import { AccountPool } from '../upstream/accounts/account-pool.ts';
import type { Account } from '../upstream/accounts/account.ts';
import {
  anonymous,
  dockerCredentials,
  fixedCredentials,
  helperCredentials,
  secretReader,
  type CredentialSource,
} from '../upstream/accounts/credentials.ts';
import type { Quota } from '../upstream/accounts/quota.ts';
import { portOf } from '../upstream/http/network-policy.ts';
import { RegistryClient } from '../upstream/registry-client.ts';
import type { Budget } from '../util/budget.ts';
import type { Clock } from '../util/clock.ts';
import { Slots } from '../util/slots.ts';

/** The parts that the service is put together from, as the configuration says. */
export interface UpstreamsContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  readonly catalog: Catalog;
  /** By which other mirrors know this one. */
  readonly pseudonym: string;
  /** Memory for manifests and lists on their way. */
  readonly documents: Budget;
  /** The configuration as it is now. */
  readonly current: () => Config;
}

/** What of a running mirror's upstreams is kept, since nothing of it has changed. */
export interface Kept {
  readonly named: (upstream: UpstreamConfig) => NamedUpstream | undefined;
  readonly family: (family: FamilyConfig) => UpstreamFamily | undefined;
}

const nothing: Kept = { named: () => undefined, family: () => undefined };

export function buildUpstreams(
  config: Config,
  context: UpstreamsContext,
  kept: Kept = nothing,
): UpstreamsOptions {
  return {
    named: config.upstreams.map((upstream) => {
      const { registry, aliases, hosts } = upstream;
      const scale = { name: registry, remembers: 10_000 };
      const made = (): NamedUpstream => ({
        ...buildUpstream(upstream, scale, config, context),
        name: registry,
        aliases,
        hosts,
      });
      return kept.named(upstream) ?? made();
    }),
    families: config.families.map((family) => {
      const { registry: name, pattern } = family;
      // All of them together have as many connections as one upstream: anybody may rent one.
      const pool = new Pool(family.maxConnections);
      const create = (registry: string): Upstream => {
        const member = { ...family, registry, url: new URL(`https://${registry}`) };
        return buildUpstream(member, { name, remembers: 50 }, config, context, pool);
      };
      return kept.family(family) ?? { name, pattern, isPrivate: family.private, create };
    }),
    defaultUpstream: config.defaultUpstream,
  };
}

/** What of a running mirror's upstreams need not be made anew after its configuration has changed. */
export function keptUpstreams(before: Config, upstreams: Upstreams): Kept {
  const isSame = (list: readonly (UpstreamConfig | FamilyConfig)[], now: UpstreamConfig | FamilyConfig) =>
    isDeepStrictEqual(
      list.find(({ registry }) => registry === now.registry),
      now,
    );
  return {
    named: (now) => (isSame(before.upstreams, now) ? upstreams.named(now.registry) : undefined),
    family: (now) => (isSame(before.families, now) ? upstreams.family(now.registry) : undefined),
  };
}

function buildUpstream(
  upstream: Omit<UpstreamConfig, 'aliases'>,
  scale: { readonly name: string; readonly remembers: number },
  config: Config,
  { clock, log, metrics, ledger, catalog, current, pseudonym, documents }: UpstreamsContext,
  shared?: Pool,
): Upstream {
  const { connectTimeout, headersTimeout, idleTimeout, maxManifestBytes } = config.fetch;
  const { registry, maxConnections } = upstream;
  const credentials = credentialsOf(upstream, clock);
  const savedQuota = (account: string) => catalog.quotas.get(registry, account);
  const accounts = new AccountPool(
    { ...scale, registry, credentials, reserve: () => current().quota.reserve },
    { clock, log, metrics, savedQuota },
  );
  const client = new RegistryClient(
    {
      ...upstream,
      ...scale,
      connectTimeoutMs: connectTimeout,
      headersTimeoutMs: headersTimeout,
      idleTimeoutMs: idleTimeout,
      maxManifestBytes,
      firstByteTimeoutMs: config.fetch.firstByteTimeout,
      isPrivateUpstream: (url) => isPrivateUpstream(current(), url),
    },
    { clock, log, metrics, accounts, ledger, pseudonym, documents },
  );
  return {
    client,
    pool: new Pool(maxConnections, shared),
    relaySlots: new Slots(maxConnections),
    isPrivate: upstream.private,
    ttlOf: ttlOf(upstream, current),
  };
}

function isPrivateUpstream({ upstreams, families }: Config, to: URL): boolean {
  // A name that ends in a dot is the same host.
  const hostOf = ({ hostname }: URL): string => hostname.replace(/\.$/, '');
  return (
    upstreams.some(
      (each) => each.private && hostOf(each.url) === hostOf(to) && portOf(each.url) === portOf(to),
    ) || families.some((family) => family.private && family.pattern.matches(hostOf(to)))
  );
}

export function tagPolicyOf({ tags }: Config): TagPolicy {
  const { revalidate, whenGone, staleIfError, negativeTtl } = tags;
  return { revalidate, whenGone, staleIfErrorMs: staleIfError, negativeTtlMs: negativeTtl };
}

/** What metrics show of them. */
export function upstreamReadings(upstreams: Upstreams): UpstreamReadings {
  const accounts = () =>
    upstreams.all.flatMap(({ registry, accounts }) =>
      accounts.accounts.map((account) => ({ registry, account })),
    );
  type Series = [registry: string, account: string, value: number];
  const each = (of: (account: Account) => number | undefined) => (): Series[] =>
    accounts().flatMap(({ registry, account }): Series[] => {
      const value = of(account);
      return value === undefined ? [] : [[registry, account.name, value]];
    });
  // Where nobody counts there is no figure.
  const counted = (of: (quota: Quota) => number) =>
    each(({ quota }) => (quota.limit === undefined ? undefined : of(quota)));
  return {
    accountsAside: each(({ disabled }) => (disabled ? 1 : 0)),
    quotaLimit: counted(({ limit }) => limit ?? 0),
    quotaRemaining: counted(({ remaining }) => remaining ?? 0),
    quotaResetSeconds: counted(({ backInMs }) => (backInMs ?? 0) / 1000),
    quotaExhaustionSeconds: counted(({ exhaustedInMs }) => exhaustedInMs / 1000),
    hostsShut: () =>
      upstreams.all.flatMap(({ registry, shut }): [string, 'registry' | 'other', number][] => [
        [registry, 'registry', shut.own],
        [registry, 'other', shut.others],
      ]),
  };
}

/** Who may ask, and for what. */
export function clientsOptionsOf({ allow, deny, clients, trustedProxies }: Config): ClientsOptions {
  return {
    htpasswd: clients.htpasswd,
    allowFrom: clients.allowFrom,
    trustedProxies: trustedProxies,
    maxRequestsPerSecond: clients.maxRequestsPerSecond,
    maxConnections: clients.maxConnections,
    rules: { allow, deny },
    groups: clients.groups.map(({ name, from, users, ...rules }) => ({
      name,
      from,
      users: users?.map((text) => globToRegExp(text, () => '.*')),
      allow: rules.allow,
      deny: rules.deny,
    })),
  };
}

/** What operators may ask of a running mirror. */
export function adminOf(
  config: Config,
  store: BlobStore,
  current: () => Config,
): Omit<AdminContext, 'metrics' | 'log' | 'isDraining' | 'readiness'> {
  const { adminToken, adminListen } = config;
  const readToken = adminToken === undefined ? undefined : secretReader(adminToken);
  const target: Target = {
    store,
    registries: () => current().upstreams.map(({ registry }) => registry),
    defaultRegistry: () => current().defaultUpstream,
  };
  const forApi = Object.entries(operations).filter(([, { isForApi }]) => isForApi);
  return {
    isLoopback: isLoopback(adminListen?.host ?? ''),
    token: async () => readToken?.(),
    operations: Object.fromEntries(
      forApi.map(([name, { prepare }]) => [name, async (args: unknown) => prepare(args).run?.(target)]),
    ),
  };
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\./.test(host);
}

/** The accounts that an upstream's configuration names, in its order. */
function credentialsOf(
  upstream: Pick<UpstreamConfig, 'registry' | 'accounts' | 'dockerConfig' | 'credentialHelper'>,
  clock: Clock,
): CredentialSource[] {
  const { registry, accounts, dockerConfig, credentialHelper } = upstream;
  return [
    ...accounts.map((each) =>
      'username' in each ? fixedCredentials(each.username, each.password) : anonymous,
    ),
    ...(dockerConfig === undefined ? [] : [dockerCredentials(dockerConfig, registry, clock)]),
    ...(credentialHelper === undefined ? [] : [helperCredentials(credentialHelper, registry, clock)]),
  ];
}

/** What is pushed after its image is looked for soon after. */
const longestTtlOfSignaturesMs = 60_000;

/** The first rule that matches, else the upstream's own key, else the general one, as they are now. */
function ttlOf(
  { tags }: Pick<UpstreamConfig, 'tags'>,
  current: () => Config,
): (repo: Repo, tag: string) => number {
  return (repo, tag) => {
    const { rules, ttl: general } = current().tags;
    const ttl = rules.find(({ match }) => match.matches(repo, tag))?.ttl ?? tags.ttl ?? general;
    return subjectOf(tag) !== undefined ? Math.min(ttl, longestTtlOfSignaturesMs) : ttl;
  };
}
