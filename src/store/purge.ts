import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Digest } from '../oci/digest.ts';
import type { Pattern } from '../oci/pattern.ts';
import { createRepo } from '../oci/repo.ts';
import type { BlobStore } from './blob-store.ts';
import type { Root } from './catalog.ts';

const rootsAtOnce = 20;

export interface Purged {
  readonly tags: number;
  readonly blobs: number;
  readonly bytes: number;
  /** What stays though it was meant: it is pinned or in use. */
  readonly kept: number;
}

/**
 * Forgets the tags and repos that a pattern names, and puts out what nothing else refers to: a layer that other images
 * share stays. `dryRun` only says what would go.
 */
export async function purge(store: BlobStore, pattern: Pattern, dryRun: boolean): Promise<Purged> {
  const { catalog } = store;
  const isMeant = ({ registry, repo, tag }: Root): boolean =>
    pattern.matches(createRepo(registry, repo), tag);
  const tags = catalog.tagged(pattern.glob).filter(isMeant);
  const linked = catalog.linked(pattern.glob).filter(isMeant);
  const victims = new Set<Digest>();
  const visit = (digest: Digest): void => {
    if (victims.has(digest) || !catalog.blob(digest)) return;
    // Another tag, another repo or another image that stays holds it.
    const isTagged = catalog.tagsOf(digest).some((root) => !isMeant(root));
    const isShared = catalog
      .linked('*', digest)
      .some(({ registry, repo }) => !pattern.matchesRepo(createRepo(registry, repo)));
    if (isTagged || isShared || catalog.parents(digest).some((parent) => !victims.has(parent))) return;
    victims.add(digest);
    for (const child of catalog.children(digest)) visit(child.digest);
  };
  let looked = 0;
  for (const { digest } of [...tags, ...linked]) {
    visit(digest);
    // A running mirror answers in between.
    if (++looked % rootsAtOnce === 0) await nextTurn();
  }
  const sizeOf = (digests: Iterable<Digest>): number => {
    let bytes = 0;
    for (const digest of digests) bytes += catalog.blob(digest)?.size ?? 0;
    return bytes;
  };
  const pinned = [...victims].filter((digest) => catalog.isPinned(digest));
  const bytes = sizeOf(victims) - sizeOf(pinned);
  if (dryRun) {
    return { tags: tags.length, blobs: victims.size - pinned.length, bytes, kept: pinned.length };
  }
  const sizes = new Map([...victims].map((digest) => [digest, catalog.blob(digest)?.size ?? 0]));
  for (const { registry, repo, tag } of tags) {
    if (tag !== undefined && !tags.some((each) => each.tag === tag && pinned.includes(each.digest)))
      catalog.removeTag(createRepo(registry, repo), tag);
  }
  const removed = await store.remove(victims);
  return {
    tags: tags.length,
    blobs: removed.length,
    bytes: removed.reduce((sum, digest) => sum + (sizes.get(digest) ?? 0), 0),
    kept: victims.size - removed.length,
  };
}
