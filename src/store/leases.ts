import type { Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import { blobPath } from './disk/layout.ts';
import { SharedFile } from './reading/stored-content.ts';

/** Receives blobs found corrupt while being read. */
export interface DamageListener {
  report(row: Descriptor, why: string): void;
}

/** Leases on stored files. All readers of a blob share one open file. */
export class Leases {
  readonly #root: string;
  readonly #files = new Map<Digest, SharedFile>();
  #count = 0;

  /** `root`: the data directory. */
  constructor(root: string) {
    this.#root = root;
  }

  get isEmpty(): boolean {
    return this.#files.size === 0;
  }

  /** Number of leases taken so far. */
  get count(): number {
    return this.#count;
  }

  has(digest: Digest): boolean {
    return this.#files.has(digest);
  }

  get(digest: Digest): SharedFile | undefined {
    return this.#files.get(digest);
  }

  /** Call in the tick in which `row` was looked up. */
  take(row: Descriptor, damage: DamageListener): SharedFile {
    this.#count += 1;
    const { digest } = row;
    const shared = this.#files.get(digest);
    if (shared) return shared.enter();
    const file = new SharedFile(row, blobPath(this.#root, digest), {
      onIdle: () => {
        if (this.#files.get(digest) === file) this.#files.delete(digest);
      },
      // Later leases must not share the corrupt file.
      onDamaged: (why) => {
        // A file stored in its place since may be intact.
        if (this.#files.get(digest) === file) damage.report(row, why);
      },
    });
    this.#files.set(digest, file);
    return file;
  }

  /** Later leases open the file that is then stored. */
  forget(digest: Digest): void {
    this.#files.delete(digest);
  }
}
