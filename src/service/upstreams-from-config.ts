import { isDeepStrictEqual } from 'node:util';
import type { Config, FamilyConfig, UpstreamConfig } from '../config/types.ts';
import { Pool } from '../mirror/fill/connections.ts';
import type {
  NamedUpstream,
  Upstream,
  UpstreamFamily,
  Upstreams,
  UpstreamsOptions,
} from '../mirror/upstreams.ts';
import type { Repo } from '../oci/repo.ts';
import { subjectOf } from '../oci/signatures.ts';
import type { Catalog } from '../store/catalog/catalog.ts';
import type { Ledger } from '../telemetry/ledger.ts';
import type { Logger } from '../telemetry/log.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import { AccountPool } from '../upstream/accounts/account-pool.ts';
import {
  anonymous,
  dockerCredentials,
  fixedCredentials,
  helperCredentials,
  type CredentialSource,
} from '../upstream/accounts/credentials.ts';
import { portOf } from '../upstream/http/network-policy.ts';
import { RegistryClient } from '../upstream/registry-client.ts';
import type { Budget } from '../util/budget.ts';
import type { Clock } from '../util/clock.ts';
import { Slots } from '../util/slots.ts';
import type { LiveConfig } from './live-config.ts';

export interface UpstreamsContext {
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  readonly catalog: Catalog;
  /** This mirror's name in Via. */
  readonly pseudonym: string;
  /** Memory for manifests and lists that are being received. */
  readonly documents: Budget;
  readonly live: LiveConfig;
}

/** Upstreams of the running mirror to keep on reload, as their configuration is unchanged. */
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
      const scale = { name: registry, maxRemembered: 10_000 };
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
      // Registries of a pattern share one limit: anybody may own one of them.
      const pool = new Pool(family.maxConnections);
      const create = (registry: string): Upstream => {
        const member = { ...family, registry, url: new URL(`https://${registry}`) };
        return buildUpstream(member, { name, maxRemembered: 50 }, config, context, pool);
      };
      return kept.family(family) ?? { name, pattern, isPrivate: family.private, create };
    }),
    defaultUpstream: config.defaultUpstream,
  };
}

/** The upstreams that a reload can keep. */
export function keptUpstreams(before: Config, next: Config, upstreams: Upstreams): Kept {
  if (!isDeepStrictEqual(fetchOf(before), fetchOf(next))) return nothing;
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
  scale: { readonly name: string; readonly maxRemembered: number },
  config: Config,
  { clock, log, metrics, ledger, catalog, live, pseudonym, documents }: UpstreamsContext,
  shared?: Pool,
): Upstream {
  const { registry, maxConnections } = upstream;
  const credentials = credentialsOf(upstream, clock);
  const savedQuota = (account: string) => catalog.quotas.get(registry, account);
  const accounts = new AccountPool(
    { ...scale, registry, credentials, reserve: () => live.now.quota.reserve },
    { clock, log, metrics, savedQuota },
  );
  const client = new RegistryClient(
    {
      ...upstream,
      ...scale,
      ...fetchOf(config),
      isPrivateUpstream: (url) => isPrivateUpstream(live.now, url),
    },
    { clock, log, metrics, accounts, ledger, pseudonym, documents },
  );
  return {
    client,
    pool: new Pool(maxConnections, shared),
    relaySlots: new Slots(maxConnections),
    isPrivate: upstream.private,
    ttlOf: ttlOf(upstream, live),
  };
}

/** `fetch.*` settings that are fixed when an upstream is built. */
function fetchOf({ fetch }: Config) {
  return {
    connectTimeoutMs: fetch.connectTimeout,
    headersTimeoutMs: fetch.headersTimeout,
    idleTimeoutMs: fetch.idleTimeout,
    maxManifestBytes: fetch.maxManifestBytes,
    firstByteTimeoutMs: fetch.firstByteTimeout,
  };
}

function isPrivateUpstream({ upstreams, families }: Config, to: URL): boolean {
  // A trailing dot denotes the same host.
  const hostOf = ({ hostname }: URL): string => hostname.replace(/\.$/, '');
  return (
    upstreams.some(
      (each) => each.private && hostOf(each.url) === hostOf(to) && portOf(each.url) === portOf(to),
    ) || families.some((family) => family.private && family.pattern.matches(hostOf(to)))
  );
}

/** The configured accounts of an upstream, in order. */
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

/** Signatures are pushed after their image, and looked up soon after. */
const longestTtlOfSignaturesMs = 60_000;

/** TTL of a tag, ms: the first matching rule, else the upstream's `tags.ttl`, else the general one. */
function ttlOf(
  { tags }: Pick<UpstreamConfig, 'tags'>,
  live: LiveConfig,
): (repo: Repo, tag: string) => number {
  return (repo, tag) => {
    const { rules, ttl: general } = live.now.tags;
    const ttl = rules.find(({ match }) => match.matches(repo, tag))?.ttl ?? tags.ttl ?? general;
    return subjectOf(tag) !== undefined ? Math.min(ttl, longestTtlOfSignaturesMs) : ttl;
  };
}
