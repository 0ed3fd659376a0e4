import { algorithmOf, hexOf, type Digest } from '../../oci/digest.ts';
import { WorkerThread } from '../../util/worker.ts';

/** The hash of one digest's bytes, computed on a worker thread. */
export interface Verification {
  /** The open file is whole up to `offset`. */
  advance(offset: number): void;
  /** Resolves when all that is readable now has been hashed. Rejects when it cannot be read. */
  reached(): Promise<void>;
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
  readonly #worker: WorkerThread;
  #next = 1;

  /** `onDeath` is told when the thread has ended by itself; it is started again. */
  constructor(onDeath?: (error: Error) => void) {
    this.#worker = new WorkerThread('verifier-worker', import.meta.url, onDeath);
  }

  /** `fd` is read by position, and stays the caller's. */
  start(digest: Digest, fd = -1): Verification {
    return new WorkerVerification(this.#worker, () => this.#next++, digest, fd);
  }

  close(): Promise<void> {
    return this.#worker.close();
  }
}

/** Of a file it is begun anew when the thread has died; of bytes that were only fed to it nothing is left then. */
class WorkerVerification implements Verification {
  readonly #worker: WorkerThread;
  readonly #newId: () => number;
  readonly #digest: Digest;
  readonly #fd: number;
  #id: number;
  /** Which thread has it. */
  #thread: number;
  #readable = 0;

  /** `id`: a job that the worker has already. */
  constructor(worker: WorkerThread, newId: () => number, digest: Digest, fd: number, id?: number) {
    this.#worker = worker;
    this.#newId = newId;
    this.#digest = digest;
    this.#fd = fd;
    this.#thread = worker.start();
    this.#id = id ?? this.#open();
  }

  advance(offset: number): void {
    this.#readable = offset;
    if (!this.#renew()) this.#worker.tell('advance', { id: this.#id, to: offset });
  }

  reached(): Promise<void> {
    return this.#call('reached', {});
  }

  feed(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    return this.#worker.call('feed', { id: this.#id, bytes }, [bytes.buffer]);
  }

  async fork(): Promise<Verification> {
    const to = this.#newId();
    await this.#call('fork', { to });
    return new WorkerVerification(this.#worker, this.#newId, this.#digest, -1, to);
  }

  async matches(): Promise<boolean> {
    return (await this.#call<string>('digest', {})) === hexOf(this.#digest);
  }

  end(): Promise<void> {
    return this.#worker.call('drop', { id: this.#id });
  }

  async #call<T>(method: string, args: object): Promise<T> {
    this.#renew();
    try {
      return await this.#worker.call<T>(method, { id: this.#id, ...args });
    } catch (error) {
      if (!this.#renew()) throw error;
      return await this.#worker.call<T>(method, { id: this.#id, ...args });
    }
  }

  /** Begins anew in a new thread, if that is needed and can be done. */
  #renew(): boolean {
    const thread = this.#worker.start();
    if (thread === this.#thread || this.#fd < 0) return false;
    this.#thread = thread;
    this.#id = this.#open();
    this.#worker.tell('advance', { id: this.#id, to: this.#readable });
    return true;
  }

  #open(): number {
    const id = this.#newId();
    this.#worker.tell('open', { id, fd: this.#fd, algorithm: algorithmOf(this.#digest) });
    return id;
  }
}
