import type { Digest } from '../../oci/digest.ts';
import type { Pattern } from '../../oci/pattern.ts';
import { inSteps } from '../../util/steps.ts';
import type { BlobStore } from '../blob-store.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { footprint } from '../catalog/tables/blobs.ts';
import type { Root } from '../catalog/tables/roots.ts';

export interface Purged {
  readonly tags: number;
  readonly blobs: number;
  readonly bytes: number;
  /** Matching blobs that stay, since they are pinned or in use. */
  readonly kept: number;
}

interface Plan {
  readonly tags: readonly Root[];
  /** Blobs used by nothing else, with their disk use. */
  readonly victims: ReadonlyMap<Digest, number>;
  /** Number of matching blobs that stay, since they are pinned. */
  readonly pinned: number;
}

/** Removes the tags that match a pattern, and deletes the blobs of these repos that no other image uses. */
export async function purge(store: BlobStore, pattern: Pattern): Promise<Purged> {
  const { catalog } = store;
  const { tags, victims, pinned } = await inSteps(plan(catalog, pattern));
  catalog.lists.removeOfRepos(pattern.glob);
  await inSteps(removeTags(catalog, tags));
  const deleted = await store.remove(victims.keys());
  return {
    tags: tags.length,
    blobs: deleted.length,
    bytes: deleted.reduce((sum, digest) => sum + (victims.get(digest) ?? 0), 0),
    kept: pinned + victims.size - deleted.length,
  };
}

function* removeTags(catalog: Catalog, tags: readonly Root[]): Generator<undefined, undefined> {
  for (const { registry, repo, tag } of tags) {
    if (tag === undefined) continue;
    catalog.tags.remove({ registry, name: repo }, tag);
    yield;
  }
}

/** What `purge` would do, apart from blobs in use at that time. Changes nothing. */
export async function previewPurge(catalog: Catalog, pattern: Pattern): Promise<Purged> {
  const { tags, victims, pinned } = await inSteps(plan(catalog, pattern));
  const bytes = [...victims.values()].reduce((sum, size) => sum + size, 0);
  return { tags: tags.length, blobs: victims.size, bytes, kept: pinned };
}

/** A generator, so that a running mirror can serve requests in between. */
function* plan(catalog: Catalog, pattern: Pattern): Generator<undefined, Plan> {
  const isMatch = ({ registry, repo, tag }: Root): boolean => pattern.matches({ registry, name: repo }, tag);
  // Pinned images keep their tags.
  const tags = catalog.roots
    .tagged(pattern.glob)
    .filter((root) => isMatch(root) && !catalog.pins.isPinned(root.digest));
  const owned = catalog.roots.blobsOf(pattern.glob).filter(isMatch);
  const victims = new Map<Digest, number>();
  const pinned = new Set<Digest>();
  const visit = (digest: Digest): boolean => {
    const blob = catalog.blobs.get(digest);
    if (!blob || victims.has(digest)) return false;
    // The blob stays if another tag, repo or image uses it.
    const isTagged = catalog.roots.tagsOf(digest).some((root) => !isMatch(root));
    const isShared = catalog.links
      .reposOf(digest)
      .some(({ registry, repo }) => !pattern.matchesRepo({ registry, name: repo }));
    if (isTagged || isShared || catalog.children.parents(digest).some((parent) => !victims.has(parent)))
      return false;
    if (catalog.pins.isPinned(digest)) {
      pinned.add(digest);
      return false;
    }
    victims.set(digest, footprint(blob.size));
    return true;
  };
  for (const { digest: root } of [...tags, ...owned]) {
    const pending = [root];
    for (let digest = pending.pop(); digest !== undefined; digest = pending.pop()) {
      yield;
      if (!visit(digest)) continue;
      for (const children of catalog.children.stored(digest)) {
        pending.push(...children);
        yield;
      }
    }
  }
  return { tags, victims, pinned: pinned.size };
}
