import { setImmediate as yieldToOthers } from 'node:timers/promises';
import type { Digest } from '../../oci/digest.ts';
import type { Child } from '../../oci/manifest.ts';

/** What is known of the parts of an image. */
export interface Parts {
  /** It is held, and the repo may have it. */
  has(digest: Digest): boolean;
  /** Nobody who has pulled the image has ever asked for this part. */
  isUnused(child: Child): boolean;
  /** Of a manifest that is held. */
  children(digest: Digest): readonly Child[];
}

/** More digests than any image has; of what needs more it is not said that it is whole. */
const maxDigests = 2000;
const digestsAtOnce = 100;

/**
 * Whether an image can be pulled from the store alone: its manifest, config and layers (`manifests`: only the first), foreign
 * layers and what nobody uses excepted; of an index at least one child. Each digest is looked at once, some at a time.
 */
export async function isWhole(root: Digest, parts: Parts, what: 'all' | 'manifests'): Promise<boolean> {
  const known = new Map<Digest, boolean>();
  const has = async (digest: Digest): Promise<boolean> => {
    const before = known.get(digest);
    if (before !== undefined) return before;
    if (known.size % digestsAtOnce === digestsAtOnce - 1) await yieldToOthers();
    const isHere = known.size < maxDigests && parts.has(digest);
    if (known.size < maxDigests) known.set(digest, isHere);
    return isHere;
  };
  const visited = new Set<Digest>();
  const visit = async (digest: Digest): Promise<boolean> => {
    // What has been visited was not whole, or all of this would be over.
    if (visited.has(digest) || !(await has(digest))) return false;
    visited.add(digest);
    const children = parts.children(digest);
    const images = children.filter(({ kind }) => kind === 'manifest');
    for (const image of images) {
      if (known.size >= maxDigests) return false;
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
