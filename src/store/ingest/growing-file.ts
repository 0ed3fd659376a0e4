import { open, unlink, type FileHandle } from 'node:fs/promises';
import type { Digest } from '../../oci/digest.ts';
import type { ByteRange } from '../../oci/range.ts';
import { MirrorError } from '../../util/errors.ts';
import type { Slots } from '../../util/slots.ts';
import type { Health } from '../disk/health.ts';
import type { Buffers } from '../reading/buffers.ts';
import { Reads } from '../reading/reads.ts';
import type { Reservation } from '../room/reservation.ts';
import { Intervals } from './intervals.ts';
import { JournalWriter, type JournalWriterContext, type OpenFile } from './journal-writer.ts';
import { withoutHoles, type Journalled, type Leftover } from './journal.ts';

/** Shared by all growing files of a store. */
export interface GrowingFileContext extends JournalWriterContext {
  readonly buffers: Buffers;
  /** Limits concurrent writes: writes throttled by the kernel occupy the thread pool and would block reads. */
  readonly writes: Slots;
  readonly health: Health;
}

const minMargin = 1024 * 1024;
const maxMargin = 16 * 1024 * 1024;
/**
 * Space to reserve for `bytes` and those that follow if the size is unknown or unreliable: twice as much, with a
 * margin of 1 to 16 MiB.
 */
export function withMargin(bytes: number): number {
  return bytes + Math.min(Math.max(bytes, minMargin), maxMargin);
}

/** The sparse file of an ingest, and its journal of the intervals present. Each byte is written once. */
export class GrowingFile implements OpenFile {
  readonly registry: string;
  readonly digest: Digest;
  readonly path: string;
  readonly reservation: Reservation;
  readonly #context: GrowingFileContext;
  readonly #leftover: Leftover | undefined;
  readonly #journal: JournalWriter;
  #present = new Intervals();
  /** Bytes from an earlier process: not served until the digest is verified. */
  #unproven = new Intervals();
  /** Present or being written. A failed write ends the ingest. */
  #claimed = new Intervals();
  #handle: FileHandle | undefined;
  #reads: Reads | undefined;
  #size: number | undefined;

  constructor(
    {
      registry,
      digest,
      path,
      reservation,
    }: Pick<Journalled, 'registry' | 'digest' | 'path'> & { readonly reservation: Reservation },
    context: GrowingFileContext,
    leftover: Leftover | undefined,
  ) {
    this.registry = registry;
    this.digest = digest;
    this.path = path;
    this.reservation = reservation;
    this.#context = context;
    this.#leftover = leftover;
    this.#journal = new JournalWriter(context);
  }

  /** Of the blob, in bytes. */
  get size(): number | undefined {
    return this.#size;
  }

  get present(): Intervals {
    return this.#present;
  }

  get synced(): Intervals {
    return this.#journal.synced;
  }

  get unproven(): Intervals {
    return this.#unproven;
  }

  /** Whether a file exists: small blobs are never written to one. */
  get isThere(): boolean {
    return this.#handle !== undefined || this.#leftover !== undefined;
  }

  get fd(): number {
    return this.#open.fd;
  }

  /** Shared by all readers. */
  get reads(): Reads {
    this.#reads ??= new Reads(`blob ${this.digest}`, this.#open, this.#context.buffers);
    return this.#reads;
  }

  /** Opens the file left by an earlier ingest, if there is one, and checks its intervals. */
  async reopen(): Promise<void> {
    const leftover = this.#leftover;
    if (!leftover || this.#handle) return;
    try {
      const handle = await open(this.path, 'r+');
      this.#handle = handle;
      this.#present = leftover.isFromThisProcess
        ? new Intervals(leftover.present.ranges)
        : await withoutHoles(handle, leftover.present, leftover.synced);
      this.#claimed = new Intervals(this.#present.ranges);
      this.#unproven = new Intervals((leftover.isFromThisProcess ? leftover.unproven : this.#present).ranges);
    } catch {
      // Unusable: start with an empty file.
      await this.#handle?.close();
      this.#handle = undefined;
      await unlink(this.path).catch(() => undefined);
      this.reservation.shrinkTo(0);
      return;
    }
    this.#size = leftover.size;
    this.#journal.resume(leftover.synced, this.#present.total);
  }

  /** Reserves `room` bytes in all and opens the file. Bytes for another size are dropped. Throws `store-full`. */
  async begin(size: number | undefined, room: number | undefined, signal?: AbortSignal): Promise<void> {
    if (this.#size !== undefined && size !== undefined && size !== this.#size) {
      await this.#empty();
      this.#size = size;
      this.#journal.write(this);
    }
    this.#size ??= size;
    await this.reserve(room ?? withMargin(0), signal);
    try {
      this.#handle ??= await open(this.path, 'wx+');
    } catch (error) {
      throw this.#writeFault(error);
    }
    this.#journal.begin();
  }

  /** Reserves `bytes` in all. Throws `store-full`, also if the signal aborts first. */
  async reserve(bytes: number, signal?: AbortSignal): Promise<void> {
    try {
      await this.reservation.growTo(bytes, signal);
    } catch (error) {
      throw this.#writeFault(error);
    }
  }

  /**
   * Writes the bytes not yet present. `onPresent` gets their number in the tick in which they become readable.
   * Resolves to it. Throws `store-full`, or `upstream-invalid` for bytes beyond the size.
   */
  async write(
    offset: number,
    chunks: readonly Uint8Array[],
    onPresent: (added: number) => void,
  ): Promise<number> {
    const end = chunks.reduce((sum, chunk) => sum + chunk.byteLength, offset);
    if (this.#size !== undefined && end > this.#size) {
      throw new MirrorError(
        'upstream-invalid',
        `blob ${this.digest}: more bytes than its size of ${this.#size}`,
      );
    }
    const parts = this.#claim(offset, end);
    const added = parts.reduce((sum, part) => sum + part.end - part.start, 0);
    if (added === 0) return 0;
    try {
      const needed = this.#claimed.total;
      if (needed > this.reservation.bytes)
        await this.reservation.growTo(Math.min(withMargin(needed), this.#size ?? Infinity));
      const done = await this.#context.writes.take();
      try {
        if (added === end - offset) await this.#writeAll(offset, chunks, added);
        else {
          const bytes = Buffer.concat(chunks);
          for (const { start, end: stop } of parts) {
            await this.#writeAll(start, [bytes.subarray(start - offset, stop - offset)], stop - start);
          }
        }
      } finally {
        done();
      }
    } catch (error) {
      throw this.#writeFault(error);
    }
    for (const { start, end: stop } of parts) this.#present.add(start, stop);
    this.reservation.wrote(added);
    onPresent(added);
    this.#journal.writeIfDue(this);
    return added;
  }

  /** Sets the size, when learnt late. Throws `upstream-invalid` if more bytes are present. */
  setSize(size: number): void {
    const end = this.#present.ranges.at(-1)?.end ?? 0;
    if (end > (this.#size ?? size)) {
      throw new MirrorError(
        'upstream-invalid',
        `blob ${this.digest}: size ${size}, but ${end} bytes were received`,
      );
    }
    this.#size ??= size;
  }

  /** Drops all bytes. */
  async startOver(): Promise<void> {
    await this.#empty();
    this.reservation.shrinkTo(0);
    this.#journal.write(this);
  }

  /** Stops journalling: the ingest has ended. */
  end(): void {
    this.#journal.isOver = true;
  }

  /** Deletes the file and its journal entry. */
  async discard(): Promise<void> {
    this.#context.partials.forget(this);
    await unlink(this.path).catch(() => undefined);
  }

  /** Leaves the file and its reservation to the next ingest. */
  leave(): void {
    this.#context.partials.add(this);
  }

  async close(): Promise<void> {
    await this.#journal.ended();
    await this.#handle?.close();
  }

  get #open(): FileHandle {
    if (!this.#handle) throw new Error(`ingest of ${this.digest} was not started`);
    return this.#handle;
  }

  /** Claims and returns the parts of the range that are neither present nor being written. */
  #claim(start: number, end: number): ByteRange[] {
    const parts: ByteRange[] = [];
    for (let at = this.#claimed.endOfRun(start); at < end; at = this.#claimed.endOfRun(at)) {
      const stop = Math.min(end, this.#claimed.next(at));
      parts.push({ start: at, end: stop });
      this.#claimed.add(at, stop);
    }
    return parts;
  }

  async #writeAll(offset: number, chunks: readonly Uint8Array[], length: number): Promise<void> {
    let { bytesWritten } = await this.#open.writev(chunks, offset);
    if (bytesWritten === length) return;
    const rest = Buffer.concat(chunks);
    while (bytesWritten < length) {
      const more = await this.#open.write(rest, bytesWritten, length - bytesWritten, offset + bytesWritten);
      bytesWritten += more.bytesWritten;
    }
  }

  async #empty(): Promise<void> {
    await this.#open.truncate(0);
    this.#present = new Intervals();
    this.#unproven = new Intervals();
    this.#claimed = new Intervals();
    this.#journal.reset();
  }

  /** Whatever the cause, the blob cannot be stored. */
  #writeFault(error: unknown): MirrorError {
    if (error instanceof MirrorError) return error;
    this.#context.health.failed(error);
    const what = `blob ${this.digest}: cannot write it to the store`;
    return new MirrorError('store-full', what, { cause: error });
  }
}
