import { open, unlink, type FileHandle } from 'node:fs/promises';
import type { Writable } from 'node:stream';
import type { Content } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { ByteRange } from '../oci/range.ts';
import { MirrorError } from '../util/errors.ts';
import type { Slots } from '../util/slots.ts';
import type { Buffers } from './buffers.ts';
import { copyFile, type Source } from './copy.ts';
import type { Reservation } from './evictor.ts';
import { Intervals } from './intervals.ts';
import type { Verification, Verifier } from './verifier.ts';

/** What an ingest needs of its store. */
export interface IngestContext {
  readonly verifier: Verifier;
  readonly buffers: Buffers;
  /** Writes are few at a time, since those that the kernel throttles would block every read too. */
  readonly writes: Slots;
  readonly reservation: Reservation;
  /** All leases are back and the file is closed. */
  readonly onClosed: () => void;
}

const unknownSizeStep = 16 * 1024 * 1024;

/**
 * The growing file of a fill: sparse, with the set of intervals that are in it. Its readers follow it at their own pace;
 * whoever reads the whole does not get the last byte before the digest is verified. Nobody else can see it before it is
 * committed.
 */
export class Ingest {
  readonly digest: Digest;
  readonly path: string;
  readonly reservation: Reservation;
  readonly #context: IngestContext;
  readonly #present = new Intervals();
  readonly #waiting = new Set<() => void>();
  #handle: FileHandle | undefined;
  #verification: Verification | undefined;
  #size: number | undefined;
  #verified = false;
  #committed = false;
  #failed = false;
  #fault: MirrorError | undefined;
  /** The leases, and one for the fill until it commits or fails. */
  #holders = 1;

  constructor(digest: Digest, path: string, context: IngestContext) {
    this.digest = digest;
    this.path = path;
    this.reservation = context.reservation;
    this.#context = context;
  }

  get size(): number | undefined {
    return this.#size;
  }

  /** Bytes on disk that are not in the store yet. */
  get pendingBytes(): number {
    return this.#committed ? 0 : this.#present.total;
  }

  get isVerified(): boolean {
    return this.#verified;
  }

  get hasReaders(): boolean {
    return this.#holders > 1;
  }

  /** Sets aside room and opens the file. Throws `store-full`, and then is of no further use. */
  async begin(size: number | undefined): Promise<void> {
    this.#size = size;
    try {
      await this.reservation.growTo(size ?? unknownSizeStep);
      this.#handle = await open(this.path, 'wx+');
    } catch (error) {
      this.reservation.release();
      this.#context.onClosed();
      throw writeFault(this.digest, error);
    }
    this.#verification = this.#context.verifier.start(this.digest, this.#handle.fd);
  }

  /** Puts bytes at their place. Throws `store-full`, or `upstream-invalid` for more bytes than the size allows. */
  async write(offset: number, chunks: readonly Uint8Array[]): Promise<void> {
    const length = chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
    const end = offset + length;
    if (this.#size !== undefined && end > this.#size) {
      throw new MirrorError(
        'upstream-invalid',
        `blob ${this.digest}: more bytes than its size of ${this.#size}`,
      );
    }
    try {
      if (end > this.reservation.bytes) await this.reservation.growTo(end + unknownSizeStep);
      const done = await this.#context.writes.take();
      try {
        await this.#writeAll(offset, chunks, length);
      } finally {
        done();
      }
    } catch (error) {
      throw writeFault(this.digest, error);
    }
    this.reservation.wrote(length);
    this.#present.add(offset, end);
    this.#verification?.advance(this.#present.endOfRun(0));
    this.#wake();
  }

  /** Everything is there, `size` bytes: resolves when the digest is proven. Throws `digest-mismatch`. */
  async verify(size: number): Promise<void> {
    this.#size = size;
    if (!(await this.#verification?.matches())) {
      throw new MirrorError('digest-mismatch', `blob ${this.digest}: ${size} bytes that do not hash to it`);
    }
    this.#verified = true;
    this.#wake();
  }

  /** Taken in this tick. */
  lease(mediaType: string): Content {
    this.#holders += 1;
    return new ArrivingContent(this.#source(), mediaType, this.digest, this.#context.buffers, () => {
      this.#leave();
    });
  }

  /** The fill has committed: the file now belongs to the store. */
  committed(): void {
    this.#committed = true;
    this.#leave();
  }

  /**
   * Ends all readers with the same fault, and leaves nothing on disk. Those that read what is verified already are not
   * disturbed: only the store has lost it.
   */
  async fail(error: MirrorError): Promise<void> {
    if (this.#failed) return;
    this.#failed = true;
    if (!this.#verified) this.#fault = error;
    this.#wake();
    await unlink(this.path).catch(() => undefined);
    this.#leave();
  }

  #source(): Source {
    const handle = this.#handle;
    if (!handle) throw new Error(`ingest of ${this.digest} was not begun`);
    const size = (): number | undefined => this.#size;
    const fault = (): MirrorError | undefined => this.#fault;
    return {
      what: `blob ${this.digest}`,
      handle,
      get size() {
        return size();
      },
      get fault() {
        return fault();
      },
      readableTo: (offset, whole) => {
        const end = this.#present.endOfRun(offset);
        if (this.#verified || !whole) return end;
        return Math.min(end, (this.#size ?? end) - 1);
      },
      onChange: (wake) => {
        this.#waiting.add(wake);
        return () => this.#waiting.delete(wake);
      },
    };
  }

  async #writeAll(offset: number, chunks: readonly Uint8Array[], length: number): Promise<void> {
    const handle = this.#handle;
    if (!handle) throw new Error(`ingest of ${this.digest} was not begun`);
    let { bytesWritten } = await handle.writev(chunks, offset);
    if (bytesWritten === length) return;
    const rest = Buffer.concat(chunks);
    while (bytesWritten < length) {
      const more = await handle.write(rest, bytesWritten, length - bytesWritten, offset + bytesWritten);
      bytesWritten += more.bytesWritten;
    }
  }

  #wake(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }

  #leave(): void {
    this.#holders -= 1;
    if (this.#holders > 0) return;
    void (async () => {
      await this.#verification?.end().catch(() => undefined);
      await this.#handle?.close();
    })()
      .catch(() => undefined)
      .finally(() => {
        this.reservation.release();
        this.#context.onClosed();
      });
  }
}

class ArrivingContent implements Content {
  readonly digest: Digest;
  readonly mediaType: string;
  readonly #source: Source;
  readonly #buffers: Buffers;
  #giveBack: (() => void) | undefined;

  constructor(source: Source, mediaType: string, digest: Digest, buffers: Buffers, giveBack: () => void) {
    this.#source = source;
    this.mediaType = mediaType;
    this.digest = digest;
    this.#buffers = buffers;
    this.#giveBack = giveBack;
  }

  get size(): number | undefined {
    return this.#source.size;
  }

  prepare(): Promise<void> {
    return Promise.resolve();
  }

  copyTo(sink: Writable, range?: ByteRange): Promise<void> {
    return copyFile(this.#source, sink, range, this.#buffers);
  }

  release(): void {
    this.#giveBack?.();
    this.#giveBack = undefined;
  }
}

/** Whatever keeps bytes from being written, the store can hold no more of this. */
function writeFault(digest: Digest, error: unknown): MirrorError {
  if (error instanceof MirrorError) return error;
  return new MirrorError('store-full', `blob ${digest}: cannot write it to the store`, { cause: error });
}
