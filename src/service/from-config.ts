import { withConfiguredRegistry } from '../config/aliases.ts';
import type { Config } from '../config/types.ts';
import type { FillsOptions } from '../mirror/fill/fills.ts';
import type { MirrorSettings } from '../mirror/tags/freshness.ts';
import { globToRegExp } from '../oci/pattern.ts';
import type { AdminContext } from '../server/admin.ts';
import type { ClientsOptions } from '../server/clients.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { StoreLimits } from '../store/context.ts';
import { operations, type Target } from '../store/operations/operations.ts';
import { secretReader } from '../upstream/accounts/credentials.ts';
import type { LiveConfig } from './live-config.ts';

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

export function mirrorSettingsOf({ fetch, tags }: Config): MirrorSettings {
  const { revalidate, whenGone, staleIfError, negativeTtl } = tags;
  return {
    firstByteTimeoutMs: fetch.firstByteTimeout,
    tags: { revalidate, whenGone, staleIfErrorMs: staleIfError, negativeTtlMs: negativeTtl },
  };
}

export function fillsOptionsOf({ fetch }: Config): FillsOptions {
  const { maxConnections, connectionsPerBlob, spanBytes, completeRanges, giveUpAfter, firstByteTimeout } =
    fetch;
  return {
    ...{ maxConnections, connectionsPerBlob, spanBytes, completeRanges },
    giveUpAfterMs: giveUpAfter,
    firstByteTimeoutMs: firstByteTimeout,
  };
}

export function storeLimitsOf({ store }: Config): StoreLimits {
  const { maxBytes, minFreeBytes, maxIdle, pins, scrubEvery } = store;
  return { maxBytes, minFreeBytes, maxIdleMs: maxIdle, pins, scrubEveryMs: scrubEvery };
}

/** Operations and token of the admin API. */
export function adminOf(
  live: LiveConfig,
  store: BlobStore,
): Omit<AdminContext, 'metrics' | 'log' | 'isDraining' | 'readiness'> {
  const readToken = live.view(({ adminToken }) =>
    adminToken === undefined ? undefined : secretReader(adminToken),
  );
  const target = targetOf(store, () => live.now);
  const forApi = Object.entries(operations).filter(([, { isForApi }]) => isForApi);
  return {
    isLoopback: isLoopback(live.now.adminListen?.host ?? ''),
    token: async () => readToken()?.(),
    operations: Object.fromEntries(
      forApi.map(([name, { prepare }]) => [
        name,
        async (args: unknown) => prepare(withConfiguredRegistry(args, live.now.upstreams)).run?.(target),
      ]),
    ),
  };
}

/** What operations change: the store, with the upstreams that are configured now. */
export function targetOf(store: BlobStore, config: () => Config): Target {
  return {
    store,
    registries: () => config().upstreams.map(({ registry }) => registry),
    defaultRegistry: () => config().defaultUpstream,
  };
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\./.test(host);
}
