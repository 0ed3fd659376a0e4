import { randomBytes } from 'node:crypto';
import { Links } from '../mirror/access/links.ts';
import { Fills } from '../mirror/fill/fills.ts';
import { Prefetch } from '../mirror/fill/prefetch.ts';
import { Mirror } from '../mirror/mirror.ts';
import { Lists } from '../mirror/tags/lists.ts';
import { Tags } from '../mirror/tags/tags.ts';
import { Upstreams } from '../mirror/upstreams.ts';
import { blobMediaType } from '../oci/content.ts';
import { Clients } from '../server/clients.ts';
import { BlobStore } from '../store/blob-store.ts';
import type { Damaged } from '../store/context.ts';
import { Ledger } from '../telemetry/ledger.ts';
import type { Log } from '../telemetry/log.ts';
import type { Metrics } from '../telemetry/metrics.ts';
import { Budget } from '../util/budget.ts';
import type { Clock } from '../util/clock.ts';
import { clientsOptionsOf, fillsOptionsOf, mirrorSettingsOf, storeLimitsOf } from './from-config.ts';
import type { LiveConfig } from './live-config.ts';
import { readingsOf } from './readings.ts';
import { buildUpstreams, type UpstreamsContext } from './upstreams-from-config.ts';

/** Memory for manifests and lists that are being received or stored, bytes. */
const documentBytes = 32 * 1024 * 1024;

/** Components of a running mirror, except its servers. */
export interface Parts {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly store: BlobStore;
  readonly ledger: Ledger;
  readonly upstreams: Upstreams;
  /** For building upstreams again on reload. */
  readonly upstreamsContext: UpstreamsContext;
  readonly links: Links;
  readonly fills: Fills;
  readonly prefetch: Prefetch;
  readonly mirror: Mirror;
  readonly lists: Lists;
  readonly clients: Clients;
  /** This mirror's name in Via. */
  readonly pseudonym: string;
}

/** Builds the components. After `stopping` aborts, no background work starts. Throws if the data directory is unusable. */
export async function assemble(
  live: LiveConfig,
  { clock, log, metrics }: Pick<Parts, 'clock' | 'log' | 'metrics'>,
  stopping: AbortSignal,
): Promise<Parts> {
  // The store is built first; its callbacks use these, which are set below.
  let tags: Tags | undefined;
  let parts: Parts | undefined;
  const store = await BlobStore.open(
    { path: live.now.store.path, limits: live.view(storeLimitsOf) },
    {
      clock,
      log: log.events,
      onEvicted: (reason) => metrics.evictions.add(1, reason),
      onPruned: (table, rows) => metrics.catalogPruned.add(rows, table),
      onDamaged: (damaged) => {
        metrics.damagedBlobs.add(1);
        if (parts && !stopping.aborted) fetchAgain(parts, damaged);
      },
      onTagChanged: (registry, repo, tag) => tags?.forget(`${registry}/${repo}:${tag}`),
    },
  );
  try {
    tags = new Tags(store.catalog, clock, log.events, (prefix) => store.holds(prefix));
    parts = assembleOn(store, tags, live, { clock, log, metrics });
    return parts;
  } catch (error) {
    await store.close();
    throw error;
  }
}

function assembleOn(
  store: BlobStore,
  tags: Tags,
  live: LiveConfig,
  { clock, log, metrics }: Pick<Parts, 'clock' | 'log' | 'metrics'>,
): Parts {
  const { events } = log;
  const { catalog } = store;
  const ledger = new Ledger(clock, catalog.ledger, (error) =>
    events.warn({ err: error }, 'the ledger could not be written; retrying'),
  );
  const pseudonym = `layercache-${randomBytes(8).toString('hex')}`;
  const documents = new Budget(documentBytes);
  const upstreamsContext = { clock, metrics, log: events, ledger, catalog, pseudonym, documents, live };
  const upstreams = new Upstreams(buildUpstreams(live.now, upstreamsContext));
  const clients = new Clients(clientsOptionsOf(live.now), { clock, log: events });
  const settings = live.view(mirrorSettingsOf);
  const links = new Links(catalog, clock, events, () => settings().tags);
  const fills = new Fills(live.view(fillsOptionsOf), {
    store,
    links,
    clock,
    log: events,
    upstreams,
    onFault: ({ fault }) => metrics.faults.add(1, fault),
  });
  const prefetch = new Prefetch({
    isEnabled: () => live.now.fetch.prefetch === 'chain',
    store,
    fills,
    receivedBytes: () => metrics.upstreamBytes.total,
    onSkipped: (layers) => metrics.prefetchSkipped.add(layers),
    onOutcome: (bytes, used) => metrics.prefetchedBytes.add(bytes, used ? 'yes' : 'no'),
  });
  const mirror = new Mirror(settings, { clock, store, links, fills, tags, upstreams, prefetch });
  const lists = new Lists(settings, { store, upstreams, clock, log: events });
  metrics.connect(readingsOf({ live, upstreams, ledger, fills, store }));
  const counted = { clock, log, metrics, ledger, pseudonym };
  return { ...counted, store, upstreams, upstreamsContext, links, fills, prefetch, mirror, lists, clients };
}

/** Fetches a damaged blob again at once if it is pinned; others are fetched on the next request. */
function fetchAgain({ upstreams, mirror, log }: Parts, { digest, mediaType, pinnedFor }: Damaged): void {
  if (!pinnedFor) return;
  const fetch = async (): Promise<void> => {
    const repo = upstreams.repoNamed(pinnedFor.registry, pinnedFor.repo);
    const asked = { method: 'GET', client: '' } as const;
    const { content } = await (mediaType === blobMediaType
      ? mirror.blob(repo, digest, asked, 'whole')
      : mirror.manifest(repo, { digest }, asked));
    content?.release();
  };
  fetch().catch((error: unknown) =>
    log.events.warn({ err: error, digest }, 'a damaged pinned blob could not be fetched again'),
  );
}
