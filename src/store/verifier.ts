import { algorithmOf, hexOf, type Digest } from '../oci/digest.ts';
import { WorkerThread } from '../util/worker.ts';

/** The hash of one digest's bytes, computed on a worker thread. */
export interface Verification {
  /** The open file is whole up to `offset`. */
  advance(offset: number): void;
  /** Bytes that are in no file; resolves when they are hashed, and must then be waited for before the next. The bytes
   * are moved to the worker: the caller must own their buffer alone. */
  feed(bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  /** A second one that goes on from here, once all that is readable now has been hashed. */
  fork(): Promise<Verification>;
  /** Whether everything so far hashes to the digest. */
  matches(): Promise<boolean>;
  /** To be called once, and awaited before the file is closed. */
  end(): Promise<void>;
}

export class Verifier {
  readonly #worker = new WorkerThread('verifier-worker', import.meta.url);
  #next = 1;

  /** `fd` is read by position, and stays the caller's. */
  start(digest: Digest, fd = -1): Verification {
    const id = this.#next++;
    this.#worker.tell('open', { id, fd, algorithm: algorithmOf(digest) });
    return this.#verification(digest, id);
  }

  close(): Promise<void> {
    return this.#worker.close();
  }

  #verification(digest: Digest, id: number): Verification {
    const worker = this.#worker;
    return {
      advance: (to) => worker.tell('advance', { id, to }),
      feed: (bytes) => worker.call('feed', { id, bytes }, [bytes.buffer]),
      fork: async () => {
        const to = this.#next++;
        await worker.call('fork', { id, to });
        return this.#verification(digest, to);
      },
      matches: async () => (await worker.call<string>('digest', { id })) === hexOf(digest),
      end: () => worker.call('drop', { id }),
    };
  }
}
