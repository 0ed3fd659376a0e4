import type { Fills } from '../mirror/fill/fills.ts';
import type { Upstreams } from '../mirror/upstreams.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Ledger } from '../telemetry/ledger.ts';
import type { Readings, UpstreamReadings } from '../telemetry/metrics.ts';
import type { Account } from '../upstream/accounts/account.ts';
import type { Quota } from '../upstream/accounts/quota.ts';
import { version } from '../version.ts';
import type { LiveConfig } from './live-config.ts';

interface ReadingParts {
  readonly live: LiveConfig;
  readonly upstreams: Upstreams;
  readonly ledger: Ledger;
  readonly fills: Fills;
  readonly store: BlobStore;
}

/** Values of the gauges, read at each scrape. */
export function readingsOf({ live, upstreams, ledger, fills, store }: ReadingParts): Readings {
  return {
    ...upstreamReadings(upstreams),
    upstreamInsecure: () =>
      [...live.now.upstreams, ...live.now.families].flatMap(({ registry, insecureSkipVerify }) =>
        insecureSkipVerify ? [[registry, 1]] : [],
      ),
    ledger: () => ledger.totals().map(([registry, item, total]) => [registry, snakeCase(item), total]),
    buildInfo: () => [[version, process.version, 1]],
    fillsActive: () => fills.active,
    fillBytesPending: () => store.pendingBytes,
    storeBytes: () => store.bytes,
    storeWritable: () => (store.trouble === undefined ? 1 : 0),
    storePinnedBytes: () => store.pins.bytes,
    storeLimitBytes: () => live.now.store.maxBytes,
  };
}

function upstreamReadings(upstreams: Upstreams): UpstreamReadings {
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
  // No series where the upstream reports no quota.
  const counted = (of: (quota: Quota) => number) =>
    each(({ quota }) => (quota.limit === undefined ? undefined : of(quota)));
  return {
    accountsRefused: each(({ disabled }) => (disabled ? 1 : 0)),
    quotaLimit: counted(({ limit }) => limit ?? 0),
    quotaRemaining: counted(({ remaining }) => remaining ?? 0),
    quotaResetSeconds: counted(({ backInMs }) => (backInMs ?? 0) / 1000),
    quotaExhaustionSeconds: counted(({ exhaustedInMs }) => exhaustedInMs / 1000),
    openBreakers: () =>
      upstreams.all.flatMap(({ registry, openCircuits }): [string, 'registry' | 'other', number][] => [
        [registry, 'registry', openCircuits.own],
        [registry, 'other', openCircuits.others],
      ]),
  };
}

function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
