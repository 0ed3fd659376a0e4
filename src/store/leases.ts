import type { Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { blobPath } from './disk/layout.ts';
import { SharedFile } from './reading/stored-content.ts';

/** Who is told of a stored blob that was found wrong while it was read. */
export interface DamageListener {
  found(row: Descriptor, why: string): void;
}

/** Who reads which stored file now: all who read the same share one. */
export class Leases {
  readonly #root: string;
  readonly #files = new Map<Digest, SharedFile>();
  #taken = 0;

  /** `root`: the data directory. */
  constructor(root: string) {
    this.#root = root;
  }

  get isEmpty(): boolean {
    return this.#files.size === 0;
  }

  /** How many leases there have been. */
  get taken(): number {
    return this.#taken;
  }

  has(digest: Digest): boolean {
    return this.#files.has(digest);
  }

  get(digest: Digest): SharedFile | undefined {
    return this.#files.get(digest);
  }

  /** Of what is stored now, in the tick in which it was looked up. */
  take(row: Descriptor, damage: DamageListener): SharedFile {
    this.#taken += 1;
    const { digest } = row;
    const shared = this.#files.get(digest);
    if (shared) return shared.enter();
    const file = new SharedFile(row, blobPath(this.#root, digest), {
      onIdle: () => {
        if (this.#files.get(digest) === file) this.#files.delete(digest);
      },
      // Later leases must not share the file that was found wanting.
      onDamaged: (why) => {
        // What it was replaced by since may be all right.
        if (this.#files.get(digest) === file) damage.found(row, why);
      },
    });
    this.#files.set(digest, file);
    return file;
  }

  /** Who leases it from now on gets what is stored from now on. */
  forget(digest: Digest): void {
    this.#files.delete(digest);
  }
}
