import { isDeepStrictEqual } from 'node:util';
import type { Config, UpstreamConfig } from './config.ts';
import { Pool } from './mirror/connections.ts';
import type { TagPolicy } from './mirror/freshness.ts';
import type { NamedUpstream, Upstream, Upstreams, UpstreamsOptions } from './mirror/upstreams.ts';
import { Pattern } from './oci/pattern.ts';
import { subjectOf } from './oci/signatures.ts';
import type { Repo } from './oci/repo.ts';
import type { AdminContext } from './server/admin.ts';
import type { ClientsOptions } from './server/clients.ts';
import type { BlobStore } from './store/blob-store.ts';
import type { Catalog } from './store/catalog.ts';
import { storeOperations } from './store/operations.ts';
import type { Account } from './upstream/account.ts';
import { Admission } from './upstream/admission.ts';
import {
  anonymous,
  dockerCredentials,
  fixedCredentials,
  helperCredentials,
  secretReader,
  type CredentialSource,
} from './upstream/credentials.ts';
import type { Quota } from './upstream/quota.ts';
import { RegistryClient } from './upstream/registry-client.ts';
import type { Clock } from './util/clock.ts';
import type { Ledger } from './util/ledger.ts';
import type { Logger } from './util/log.ts';
import type { Metrics } from './util/metrics.ts';
import { Networks } from './util/networks.ts';
import { Slots } from './util/slots.ts';

/** The parts that the service is put together from, as the configuration says. */
export interface UpstreamsContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  readonly catalog: Catalog;
}

/** `kept`: what there is already and has not changed. */
export function buildUpstreams(
  config: Config,
  context: UpstreamsContext,
  kept: (upstream: UpstreamConfig) => NamedUpstream | undefined = () => undefined,
): UpstreamsOptions {
  return {
    named: config.upstreams.map((upstream) => {
      const { registry, aliases, hosts } = upstream;
      return kept(upstream) ?? { ...buildUpstream(upstream, registry, config, context), aliases, hosts };
    }),
    families: config.families.map((family) => ({
      pattern: family.pattern,
      create: (registry) => {
        const member = { ...family, registry, url: new URL(`https://${registry}`) };
        return buildUpstream(member, family.registry, config, context);
      },
    })),
    defaultUpstream: config.defaultUpstream,
  };
}

function buildUpstream(
  upstream: Omit<UpstreamConfig, 'aliases'>,
  name: string,
  config: Config,
  { clock, log, metrics, ledger, catalog }: UpstreamsContext,
): Upstream {
  const { connectTimeout, headersTimeout, idleTimeout, maxManifestBytes } = config.fetch;
  const { registry, maxConnections } = upstream;
  const credentials = credentialsOf(upstream, clock);
  const savedQuota = (account: string) => catalog.quota(registry, account);
  const admission = new Admission(
    { registry, name, credentials, reserve: config.quota.reserve },
    { clock, log, metrics, savedQuota },
  );
  const client = new RegistryClient(
    {
      ...upstream,
      name,
      connectTimeoutMs: connectTimeout,
      headersTimeoutMs: headersTimeout,
      idleTimeoutMs: idleTimeout,
      maxManifestBytes,
      firstByteTimeoutMs: config.fetch.firstByteTimeout,
    },
    { clock, metrics, admission, ledger },
  );
  return {
    name,
    client,
    pool: new Pool(maxConnections),
    relaySlots: new Slots(maxConnections),
    ttlOf: ttlOf(upstream, config.tags),
  };
}

/** What of a running mirror's configuration is the same as before, so that its upstream need not be made anew. */
export function keptUpstreams(
  before: Config,
  after: Config,
  upstreams: Upstreams,
): (upstream: UpstreamConfig) => NamedUpstream | undefined {
  const isSame = isDeepStrictEqual(before.tags, after.tags) && isDeepStrictEqual(before.quota, after.quota);
  return (upstream) => {
    const old = before.upstreams.find(({ registry }) => registry === upstream.registry);
    return isSame && isDeepStrictEqual(old, upstream) ? upstreams.named(upstream.registry) : undefined;
  };
}

export function tagPolicyOf({ tags }: Config): TagPolicy {
  const { revalidate, whenGone, staleIfError, negativeTtl } = tags;
  return { revalidate, whenGone, staleIfErrorMs: staleIfError, negativeTtlMs: negativeTtl };
}

/** What metrics show of them. */
export function describeUpstreams(metrics: Metrics, upstreams: Upstreams): void {
  const accounts = () =>
    upstreams.all.flatMap(({ registry, admission }) =>
      admission.accounts.map((account) => ({ registry, account })),
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
  metrics.accountsAside.read = each(({ aside }) => (aside ? 1 : 0));
  metrics.quotaLimit.read = counted(({ limit }) => limit ?? 0);
  metrics.quotaRemaining.read = counted(({ remaining }) => remaining ?? 0);
  metrics.quotaResetSeconds.read = counted(({ backInMs }) => (backInMs ?? 0) / 1000);
  metrics.quotaExhaustionSeconds.read = counted(({ exhaustedInMs }) => exhaustedInMs / 1000);
  metrics.hostsShut.read = () =>
    upstreams.all.flatMap(({ registry, shut }): [string, 'registry' | 'other', number][] => [
      [registry, 'registry', shut.own],
      [registry, 'other', shut.others],
    ]);
}

/** Who may ask, and for what. */
export function clientsOptionsOf({ allow, deny, clients, trustedProxies }: Config): ClientsOptions {
  const networks = (texts: readonly string[] | undefined): Networks | undefined =>
    texts && new Networks(texts);
  return {
    htpasswd: clients.htpasswd,
    allowFrom: networks(clients.allowFrom),
    trustedProxies: networks(trustedProxies),
    maxRequestsPerSecond: clients.maxRequestsPerSecond,
    maxConnections: clients.maxConnections,
    rules: { allow: allow && patternsOf(allow), deny: patternsOf(deny) },
    groups: clients.groups.map(({ name, from, users, ...rules }) => ({
      name,
      from: networks(from),
      users: users?.map(namesLike),
      allow: rules.allow && patternsOf(rules.allow),
      deny: patternsOf(rules.deny),
    })),
  };
}

function patternsOf(texts: readonly string[]): Pattern[] {
  return texts.flatMap((text) => Pattern.parse(text) ?? []);
}

/** `ci-*` */
function namesLike(text: string): RegExp {
  return new RegExp(`^${text.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replace(/\*+/g, '.*')}$`);
}

/** What operators may ask of a running mirror. */
export function adminOf(config: Config, store: BlobStore): Omit<AdminContext, 'metrics' | 'isDraining'> {
  const { adminToken, adminListen, upstreams } = config;
  const readToken = adminToken === undefined ? undefined : secretReader(adminToken);
  const registries = upstreams.map(({ registry }) => registry);
  const operations = storeOperations(store, registries);
  const text = (value: unknown): string => (typeof value === 'string' ? value : '');
  return {
    trouble: () => store.trouble,
    isLoopback: isLoopback(adminListen?.host ?? ''),
    token: async () => readToken?.(),
    operations: {
      pins: () => operations.pins(),
      pin: ({ pattern }) => operations.pin(text(pattern)),
      unpin: ({ pattern }) => operations.unpin(text(pattern)),
      purge: ({ pattern, dryRun }) => operations.purge(text(pattern), dryRun === true),
      quarantine: ({ digests }) => operations.quarantine(Array.isArray(digests) ? digests.map(String) : []),
      import: ({ directory, registry }) => operations.import(text(directory), text(registry)),
    },
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

/** The first rule that matches, else the upstream's own key, else the general one. */
function ttlOf(
  { tags }: Pick<UpstreamConfig, 'tags'>,
  general: Config['tags'],
): (repo: Repo, tag: string) => number {
  const base = tags.ttl ?? general.ttl;
  const ttl = (tag: string): number => (subjectOf(tag) ? Math.min(base, longestTtlOfSignaturesMs) : base);
  const rules = general.rules.flatMap(({ match, ttl }) => {
    const pattern = Pattern.parse(match);
    return pattern ? [{ pattern, ttl }] : [];
  });
  if (rules.length === 0) return (_repo, tag) => ttl(tag);
  return (repo, tag) => rules.find(({ pattern }) => pattern.matches(repo, tag))?.ttl ?? ttl(tag);
}
