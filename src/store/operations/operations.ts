import { z } from 'zod';
import { isDigest } from '../../oci/digest.ts';
import { imagePatternOf, type Pattern } from '../../oci/pattern.ts';
import { OperationError } from '../../util/errors.ts';
import { counted, formatSize } from '../../util/units.ts';
import type { BlobStore } from '../blob-store.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { listPins } from '../room/pins.ts';
import { findDamage } from '../upkeep/check.ts';
import { importRegistry } from './import.ts';
import type { Inventory } from './inventory.ts';
import { define, type Operation } from './operation.ts';
import { previewPurge, purge } from './purge.ts';

/** A read-only catalog, and the configuration. */
export interface Reader {
  readonly inventory: Inventory;
  readonly catalog: Catalog;
  readonly maxBytes: number;
  readonly configuredPins: readonly Pattern[];
}

/** The store of a running mirror, or one opened by the command. */
export interface Target {
  readonly store: BlobStore;
  /** Configured upstreams. */
  readonly registries: () => readonly string[];
  readonly defaultRegistry: () => string;
}

const pattern = z.string().transform(imagePatternOf);
const none = z.strictObject({});

/** Operations on a store, by name. Both command line and admin API are generated from this table. */
export const operations: Readonly<Record<string, Operation<Reader, Target>>> = {
  usage: define({
    summary: 'disk use by repository and age of last use',
    args: none,
    read: ({ inventory, maxBytes }) => Promise.resolve({ ...inventory.usage(Date.now()), maxBytes }),
    toJson: ({ maxBytes: _, ...usage }) => usage,
    show: ({ repos, blobs, bytes, pinnedBytes, unfinishedBytes, maxBytes }) => ({
      head: ['REPOSITORY', 'BLOBS', 'BYTES', 'SHARED', 'PINNED', '< 1 DAY', '< 7 DAYS', '< 30 DAYS', 'OLDER'],
      rows: repos.map((each) => [
        `${each.registry}/${each.repo}`,
        String(each.blobs),
        ...[each.bytes, each.sharedBytes, each.pinnedBytes].map(formatSize),
        ...[each.dayBytes, each.weekBytes, each.monthBytes, each.olderBytes].map(formatSize),
      ]),
      lines: [
        '',
        `${counted(blobs, 'blob')}, ${formatSize(bytes)} ${maxBytes === Infinity ? 'no cap' : `of ${formatSize(maxBytes)}`}; pinned ${formatSize(pinnedBytes)}, unfinished ${formatSize(unfinishedBytes)}`,
      ],
    }),
  }),

  list: define({
    usage: '[pattern]',
    summary: 'known tags, and how many bytes of each image are stored',
    args: z.strictObject({ pattern: pattern.optional() }),
    read: ({ inventory }, { pattern }) => Promise.resolve(inventory.tags(pattern)),
    show: (tags, { pattern }) => ({
      head: ['TAG', 'DIGEST', 'STORED', 'PINNED', 'CONFIRMED', 'LAST USED'],
      rows: tags.map(({ registry, repo, tag, digest, heldBytes, isPinned, checkedAt, usedAt }) => [
        `${registry}/${repo}:${tag}`,
        digest.slice(0, 19),
        formatSize(heldBytes),
        isPinned ? 'yes' : '',
        showTime(checkedAt),
        usedAt === null ? '' : showTime(usedAt),
      ]),
      lines: pattern && tags.length === 0 ? [`${pattern.text}: no known tag matches`] : [],
    }),
  }),

  pins: define({
    summary: 'list pins',
    args: none,
    read: ({ inventory, configuredPins }) => Promise.resolve(listPins(configuredPins, inventory.pins())),
    run: ({ store }) => Promise.resolve(store.pins.list()),
    show: (pins) => ({
      head: ['PATTERN', 'BY'],
      rows: pins.map((each) => [each.pattern, each.isConfigured ? 'configuration' : 'command']),
    }),
  }),

  pin: define({
    usage: '<pattern>',
    summary: 'never evict images that match a pattern',
    args: z.strictObject({ pattern }),
    needsRoom: true,
    run: async ({ store }, { pattern }) => ({
      pinnedBytes: await undamaged(store).pins.pin(pattern),
      tags: tagsOf(store.catalog, pattern),
    }),
    show: ({ pinnedBytes, tags }, { pattern }) => ({
      lines: [
        `${formatSize(pinnedBytes)} are pinned`,
        ...(tags === 0 ? [`${pattern.text}: no known tag matches yet; images pulled later are pinned`] : []),
      ],
    }),
  }),

  unpin: define({
    usage: '<pattern>',
    summary: 'remove a pin',
    args: z.strictObject({ pattern }),
    run: async ({ store }, { pattern }) => ({ pinnedBytes: await undamaged(store).pins.unpin(pattern) }),
    show: ({ pinnedBytes }) => ({ lines: [`${formatSize(pinnedBytes)} are pinned`] }),
  }),

  purge: define({
    usage: '<pattern>',
    summary: 'remove the tags that match a pattern, and delete blobs no other image uses',
    options: [['--dry-run', 'only show what would be deleted']],
    args: z.strictObject({ pattern, dryRun: z.boolean().default(false) }),
    read: ({ catalog }, { pattern }) => previewPurge(catalog, pattern),
    readsIf: ({ dryRun }) => dryRun,
    run: ({ store }, { pattern, dryRun }) =>
      dryRun ? previewPurge(undamaged(store).catalog, pattern) : purge(undamaged(store), pattern),
    show: ({ tags, blobs, bytes, kept }, { pattern, dryRun }) =>
      tags + blobs + kept === 0
        ? { lines: [`${pattern.text}: nothing matches`], isFailed: !dryRun }
        : {
            lines: [
              `${dryRun ? 'would be deleted' : 'deleted'}: ${counted(tags, 'tag')}, ${counted(blobs, 'blob')}, ${formatSize(bytes)}`,
              ...(kept > 0 ? [`not deleted, since pinned or in use: ${counted(kept, 'blob')}`] : []),
            ],
          },
  }),

  quarantine: define({
    args: z.strictObject({ digests: z.array(z.string()).max(10_000) }),
    run: ({ store }, { digests }) => quarantine(undamaged(store), digests),
    show: ({ quarantined }) => ({ lines: [`${counted(quarantined, 'blob')} quarantined`] }),
  }),

  import: define({
    usage: '<directory>',
    summary: 'import blobs and tags from a registry:2 directory, proxy caches included',
    options: [['--registry <name>', 'the upstream that the content belongs to (default: defaultUpstream)']],
    paths: ['directory'],
    args: z.strictObject({ directory: z.string(), registry: z.string().optional() }),
    needsRoom: true,
    run: async ({ store, registries, defaultRegistry }, { directory, registry = defaultRegistry() }) => {
      if (!registries().includes(registry))
        throw new OperationError(`${registry}: not a configured upstream (${registries().join(', ')})`);
      return importRegistry(undamaged(store), directory, registry).catch((cause: unknown) => {
        throw new OperationError((cause as Error).message, { cause });
      });
    },
    show: ({ blobs, bytes, known, tags, problems }) => ({
      lines: [
        ...problems,
        `imported: ${counted(blobs, 'blob')}, ${formatSize(bytes)}, ${counted(tags, 'tag')}; ${counted(known, 'blob')} already stored`,
      ],
      isFailed: problems.length > 0,
    }),
  }),
};

/** Returns the store. Throws when its catalog is damaged. */
function undamaged(store: BlobStore): BlobStore {
  try {
    store.catalog.connection.expectUndamaged();
  } catch (cause) {
    throw new OperationError((cause as Error).message, { cause });
  }
  return store;
}

/** Verifies the blobs again, and quarantines corrupt ones. Resolves to their number. */
async function quarantine(store: BlobStore, digests: readonly string[]): Promise<{ quarantined: number }> {
  let quarantined = 0;
  for (const digest of digests) {
    const stored = isDigest(digest) ? store.describe(digest) : undefined;
    // A blob may have been fetched again since it was reported.
    const why =
      stored && (await findDamage(store.verifier, store.pathOf(stored.digest), stored, () => undefined));
    if (!stored || why === undefined) continue;
    await store.quarantine(stored.digest, why);
    quarantined += 1;
  }
  return { quarantined };
}

function tagsOf(catalog: Catalog, pattern: Pattern): number {
  return catalog.roots
    .tagged(pattern.glob)
    .filter(({ registry, repo, tag }) => pattern.matches({ registry, name: repo }, tag)).length;
}

function showTime(ms: number): string {
  return ms === 0 ? 'never' : new Date(ms).toISOString().slice(0, 16).replace('T', ' ');
}
