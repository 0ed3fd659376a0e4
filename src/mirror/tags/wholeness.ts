import { setImmediate as yieldToOthers } from 'node:timers/promises';
import type { Digest } from '../../oci/digest.ts';
import type { Child } from '../../oci/manifest.ts';

/** Access to the parts of an image. */
export interface Parts {
  /** Whether the part is stored, and the repo may read it. */
  has(digest: Digest): boolean;
  /** Whether no client that pulled the image has ever requested this part. */
  isUnused(child: Child): boolean;
  /** Children of a stored manifest. */
  children(digest: Digest): readonly Child[];
}

/** An image with more digests counts as incomplete. */
const maxDigests = 2000;
const digestsAtOnce = 100;

/**
 * Whether an image can be pulled from the store alone: manifest, config and layers (`manifests`: only manifests),
 * except foreign layers and parts no client uses; of an index, at least one child. Visits each digest once, and yields
 * to other work in between.
 */
export async function isWhole(root: Digest, parts: Parts, what: 'all' | 'manifests'): Promise<boolean> {
  const results = new Map<Digest, boolean>();
  const has = async (digest: Digest): Promise<boolean> => {
    const result = results.get(digest);
    if (result !== undefined) return result;
    if (results.size % digestsAtOnce === digestsAtOnce - 1) await yieldToOthers();
    const isPresent = results.size < maxDigests && parts.has(digest);
    if (results.size < maxDigests) results.set(digest, isPresent);
    return isPresent;
  };
  const visited = new Set<Digest>();
  const visit = async (digest: Digest): Promise<boolean> => {
    // A visited manifest was incomplete, or the search would have ended.
    if (visited.has(digest) || !(await has(digest))) return false;
    visited.add(digest);
    const children = parts.children(digest);
    const images = children.filter(({ kind }) => kind === 'manifest');
    for (const image of images) {
      if (results.size >= maxDigests) return false;
      if (await visit(image.digest)) return true;
    }
    if (images.length > 0) return false;
    if (what === 'all')
      for (const child of children)
        if (!child.foreign && !(await has(child.digest)) && !parts.isUnused(child)) return false;
    return true;
  };
  return visit(root);
}
