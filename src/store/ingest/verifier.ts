import { algorithmOf, hexOf, type Digest } from '../../oci/digest.ts';
import { WorkerThread } from '../../util/worker.ts';

/** Hash of a blob, computed on a worker thread. */
export interface Verification {
  /** The file is contiguous up to `offset`. */
  advance(offset: number): void;
  /** Resolves when all readable bytes are hashed. Rejects on a read error. */
  reached(): Promise<void>;
  /**
   * Hashes bytes that are in no file; await each call before the next. The bytes are transferred to the worker: the
   * caller must own the whole buffer.
   */
  feed(bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  /** A copy that continues after all bytes readable now. */
  fork(): Promise<Verification>;
  /** Whether the bytes so far match the digest. */
  matches(): Promise<boolean>;
  /** Call once, and await before closing the file. */
  end(): Promise<void>;
}

export class Verifier {
  readonly #worker: WorkerThread;
  #next = 1;

  /** `onDeath`: called when the thread died; it is restarted. */
  constructor(onDeath?: (error: Error) => void) {
    this.#worker = new WorkerThread('verifier-worker', import.meta.url, onDeath);
  }

  /** `fd`: read by position; the caller closes it. */
  start(digest: Digest, fd = -1): Verification {
    return new WorkerVerification(this.#worker, () => this.#next++, digest, fd);
  }

  close(): Promise<void> {
    return this.#worker.close();
  }
}

/** If the thread dies, hashing of a file restarts from its beginning; bytes that were only fed are lost. */
class WorkerVerification implements Verification {
  readonly #worker: WorkerThread;
  readonly #newId: () => number;
  readonly #digest: Digest;
  readonly #fd: number;
  #id: number;
  /** Thread that has the job. */
  #thread: number;
  #readable = 0;

  /** `id`: an existing job of the worker. */
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

  /** Restarts in a new thread, if necessary and possible. */
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
