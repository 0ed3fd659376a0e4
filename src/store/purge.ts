import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Digest } from '../oci/digest.ts';
import type { Pattern } from '../oci/pattern.ts';
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
 * Forgets the tags that a pattern names, and puts out what of these repos nothing else refers to: a layer that other images
 * share stays. `dryRun` only says what would go.
 */
export async function purge(store: BlobStore, pattern: Pattern, dryRun: boolean): Promise<Purged> {
  const { catalog } = store;
  const isMeant = ({ registry, repo, tag }: Root): boolean => pattern.matches({ registry, name: repo }, tag);
  // What is pinned keeps its tag.
  const tags = catalog.tagged(pattern.glob).filter((root) => isMeant(root) && !catalog.isPinned(root.digest));
  const owned = catalog.blobsOf(pattern.glob).filter(isMeant);
  const victims = new Map<Digest, number>();
  let kept = 0;
  const visit = (digest: Digest): void => {
    const blob = catalog.blob(digest);
    if (!blob || victims.has(digest)) return;
    // Another tag, another repo or another image that stays holds it.
    const isTagged = catalog.tagsOf(digest).some((root) => !isMeant(root));
    const isShared = catalog
      .reposOf(digest)
      .some(({ registry, repo }) => !pattern.matchesRepo({ registry, name: repo }));
    if (isTagged || isShared || catalog.parents(digest).some((parent) => !victims.has(parent))) return;
    if (catalog.isPinned(digest)) {
      kept += 1;
      return;
    }
    victims.set(digest, blob.size);
    for (const child of catalog.children(digest)) visit(child.digest);
  };
  let looked = 0;
  for (const { digest } of [...tags, ...owned]) {
    visit(digest);
    // A running mirror answers in between.
    if (++looked % rootsAtOnce === 0) await nextTurn();
  }
  if (!dryRun) {
    catalog.removeListsOf(pattern.glob);
    for (const { registry, repo, tag } of tags) {
      if (tag === undefined) continue;
      catalog.removeTag({ registry, name: repo }, tag);
      store.onTagChanged(registry, repo, tag);
    }
  }
  const gone = dryRun ? [...victims.keys()] : await store.remove(victims.keys());
  return {
    tags: tags.length,
    blobs: gone.length,
    bytes: gone.reduce((sum, digest) => sum + (victims.get(digest) ?? 0), 0),
    kept: kept + victims.size - gone.length,
  };
}
