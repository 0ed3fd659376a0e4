import type { Stats } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import type { Writable } from 'node:stream';
import { smallSize, type Content, type Descriptor } from '../../oci/content.ts';
import { hashesTo, type Digest } from '../../oci/digest.ts';
import type { Child } from '../../oci/manifest.ts';
import type { ByteRange } from '../../oci/range.ts';
import { errorCode, isFault, MirrorError } from '../../util/errors.ts';
import { writeTo } from '../../util/outlet.ts';
import { missingFile, notAFile, openStored } from '../disk/files.ts';
import type { Buffers } from './buffers.ts';
import { copyFile } from './copy.ts';
import { Reads } from './reads.ts';

/** A blob in memory, verified. */
export interface BufferedBlob extends Descriptor {
  readonly bytes: Buffer;
  /** Children, if it is a manifest. */
  readonly children: readonly Child[];
}

export class MemoryContent implements Content {
  readonly digest: Digest;
  readonly size: number;
  readonly mediaType: string;
  readonly #bytes: Buffer;

  constructor(blob: BufferedBlob) {
    this.digest = blob.digest;
    this.size = blob.size;
    this.mediaType = blob.mediaType;
    this.#bytes = blob.bytes;
  }

  prepare(): Promise<void> {
    return Promise.resolve();
  }

  copyTo(sink: Writable, range?: ByteRange): Promise<void> {
    return sendBytes(sink, this.#bytes, range);
  }

  release(): void {
    // Nothing to release: garbage-collected.
  }
}

async function sendBytes(sink: Writable, all: Buffer, range: ByteRange | undefined): Promise<void> {
  const bytes = range ? all.subarray(range.start, range.end) : all;
  if (bytes.length <= smallSize) {
    // The socket buffer takes so few bytes: no need to wait.
    sink.end(bytes);
    return;
  }
  await writeTo(sink, (outlet) => outlet.write(bytes));
}

export interface SharedFileEvents {
  readonly onIdle: () => void;
  readonly onDamaged: (why: string) => void;
}

/** The file of a stored blob: opened once for all leases, closed with the last. */
export class SharedFile {
  readonly path: string;
  /** A reader was sent the whole file. */
  wasFullyRead = false;
  readonly #row: Descriptor;
  readonly #events: SharedFileEvents;
  #handle: Promise<FileHandle> | undefined;
  #reads: Reads | undefined;
  #users = 1;

  constructor(row: Descriptor, path: string, events: SharedFileEvents) {
    this.#row = row;
    this.path = path;
    this.#events = events;
  }

  enter(): this {
    this.#users += 1;
    return this;
  }

  leave(): void {
    this.#users -= 1;
    if (this.#users > 0) return;
    this.#events.onIdle();
    // If opening failed, the readers got the error.
    this.#handle?.then((handle) => handle.close()).catch(() => undefined);
  }

  open(): Promise<FileHandle> {
    this.#handle ??= openStored(this.path);
    return this.#handle;
  }

  reads(handle: FileHandle, buffers: Buffers): Reads {
    this.#reads ??= new Reads(`blob ${this.#row.digest}`, handle, buffers);
    return this.#reads;
  }

  /** Runs `look` on the file. Turns errors that mean a corrupt file into `damaged`, and reports them. */
  async inspect<T>(look: () => Promise<T>): Promise<T> {
    try {
      return await look();
    } catch (error) {
      const code = errorCode(error);
      if (code === 'EMFILE' || code === 'ENFILE') {
        const what = `blob ${this.#row.digest}: too many open files`;
        throw new MirrorError('overloaded', what, { cause: error, retryAfterMs: 1000 });
      }
      const why = { ENOENT: missingFile, ENXIO: notAFile, EIO: 'its file cannot be read' }[code ?? ''];
      if (why === undefined && !isFault(error, 'damaged')) throw error;
      this.#events.onDamaged(why ?? (error as Error).message);
      throw why === undefined ? error : this.damaged(why, error);
    }
  }

  check(entry: Stats): void {
    if (!entry.isFile()) throw this.damaged(notAFile);
    const { size } = entry;
    if (size !== this.#row.size) throw this.damaged(`its file has ${size} bytes, expected ${this.#row.size}`);
  }

  damaged(why: string, cause?: unknown): MirrorError {
    return new MirrorError('damaged', `blob ${this.#row.digest}: ${why}`, { cause });
  }
}

abstract class FileContent implements Content {
  readonly digest: Digest;
  readonly size: number;
  mediaType: string;
  protected readonly file: SharedFile;
  #released = false;

  constructor(row: Descriptor, file: SharedFile) {
    this.digest = row.digest;
    this.size = row.size;
    this.mediaType = row.mediaType;
    this.file = file;
  }

  abstract prepare(): Promise<void>;
  abstract copyTo(sink: Writable, range?: ByteRange): Promise<void>;

  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.file.leave();
  }
}

/** A file small enough to be read and verified as a whole, then cached in memory. */
export class SmallContent extends FileContent {
  readonly #keep: (bytes: Buffer) => string;
  #bytes: Buffer | undefined;

  /** `keep`: caches the bytes and returns their media type. */
  constructor(row: Descriptor, file: SharedFile, keep: (bytes: Buffer) => string) {
    super(row, file);
    this.#keep = keep;
  }

  async prepare(): Promise<void> {
    this.#bytes = await this.file.inspect(async () => {
      const handle = await openStored(this.file.path);
      let bytes: Buffer;
      try {
        this.file.check(await handle.stat());
        bytes = await handle.readFile();
      } finally {
        await handle.close();
      }
      if (!hashesTo(bytes, this.digest)) {
        throw this.file.damaged('its bytes do not match the digest');
      }
      return bytes;
    });
    this.mediaType = this.#keep(this.#bytes);
  }

  copyTo(sink: Writable, range?: ByteRange): Promise<void> {
    if (!this.#bytes) throw new Error('copyTo before prepare');
    return sendBytes(sink, this.#bytes, range);
  }
}

export class StoredContent extends FileContent {
  readonly #buffers: Buffers;
  #handle: FileHandle | undefined;

  constructor(row: Descriptor, file: SharedFile, buffers: Buffers) {
    super(row, file);
    this.#buffers = buffers;
  }

  async prepare(): Promise<void> {
    this.#handle = await this.file.inspect(async () => {
      const handle = await this.file.open();
      this.file.check(await handle.stat());
      return handle;
    });
  }

  copyTo(sink: Writable, range?: ByteRange): Promise<void> {
    if (!this.#handle) throw new Error('copyTo before prepare');
    const source = {
      reads: this.file.reads(this.#handle, this.#buffers),
      offset: range?.start ?? 0,
      end: range?.end ?? this.size,
      fault: undefined,
      isFull: false,
      readableTo: () => this.size,
      onChange: () => () => undefined,
    };
    return this.file.inspect(() => writeTo(sink, (outlet) => copyFile(source, outlet, this.#buffers)));
  }
}
