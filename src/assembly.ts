import type { Config, UpstreamConfig } from './config.ts';
import { Pool } from './mirror/connections.ts';
import type { Upstream, Upstreams, UpstreamsOptions } from './mirror/upstreams.ts';
import { Pattern } from './oci/pattern.ts';
import { subjectOf } from './oci/signatures.ts';
import type { Repo } from './oci/repo.ts';
import type { AdminContext } from './server/admin.ts';
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
import { Slots } from './util/slots.ts';

/** The parts that the service is put together from, as the configuration says. */
export interface UpstreamsContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  readonly catalog: Catalog;
}

export function buildUpstreams(config: Config, context: UpstreamsContext): UpstreamsOptions {
  return {
    named: config.upstreams.map((upstream) => {
      const { registry, aliases, hosts } = upstream;
      return { ...buildUpstream(upstream, registry, config, context), aliases, hosts };
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

/** What metrics show of them. */
export function describeUpstreams(metrics: Metrics, upstreams: Upstreams): void {
  const accounts = upstreams.all.flatMap(({ registry, admission }) =>
    admission.accounts.map((account) => ({ registry, account })),
  );
  type Series = [registry: string, account: string, value: number];
  const each = (of: (account: Account) => number | undefined) => (): Series[] =>
    accounts.flatMap(({ registry, account }): Series[] => {
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
