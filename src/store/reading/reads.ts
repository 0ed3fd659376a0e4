import type { FileHandle } from 'node:fs/promises';
import { MirrorError } from '../../util/errors.ts';
import type { Buffers } from './buffers.ts';

/** Bytes read from a file, valid until released. */
export interface Read {
  readonly bytes: readonly Uint8Array[];
  readonly length: number;
  /** `isDone`: nothing reads from `bytes` any more. */
  release(isDone: boolean): void;
}

interface Shared {
  readonly parts: readonly Uint8Array[];
  readonly length: number | Promise<number>;
  /** Returned to the pool; undefined: not from the pool. */
  readonly buffer: Buffer | undefined;
  readers: number;
  isDone: boolean;
}

/**
 * Reads of one file by many readers. Readers at the same offset, as when following a growing file, share one read and
 * buffer.
 */
export class Reads {
  readonly #what: string;
  readonly #handle: FileHandle;
  readonly #buffers: Buffers;
  readonly #shared = new Map<number, Shared>();

  constructor(what: string, handle: FileHandle, buffers: Buffers) {
    this.#what = what;
    this.#handle = handle;
    this.#buffers = buffers;
  }

  /** Reads some bytes from `offset`, at most up to `end`. Throws `damaged`. */
  async at(offset: number, end: number): Promise<Read> {
    const shared = this.#shared.get(offset) ?? this.#start(offset, end);
    shared.readers += 1;
    try {
      const available = typeof shared.length === 'number' ? shared.length : await shared.length;
      const length = Math.min(available, end - offset);
      return {
        bytes: firstBytes(shared.parts, length),
        length,
        release: (isDone) => this.#leave(offset, shared, isDone),
      };
    } catch (error) {
      this.#leave(offset, shared, true);
      throw error;
    }
  }

  /** Offers bytes just written at `offset` to waiting readers, which saves reading them back. */
  seed(offset: number, parts: readonly Uint8Array[], length: number): void {
    if (this.#shared.has(offset)) return;
    const shared = { parts, length, buffer: undefined, readers: 0, isDone: true };
    this.#shared.set(offset, shared);
    setImmediate(() => {
      if (shared.readers === 0) this.#forget(offset, shared);
    });
  }

  #start(offset: number, end: number): Shared {
    const buffer = this.#buffers.take(end - offset);
    const shared = {
      parts: [buffer],
      buffer,
      length: this.#read(buffer, offset, Math.min(buffer.length, end - offset)),
      readers: 0,
      isDone: true,
    };
    this.#shared.set(offset, shared);
    return shared;
  }

  #leave(offset: number, shared: Shared, isDone: boolean): void {
    shared.readers -= 1;
    shared.isDone &&= isDone;
    if (shared.readers > 0) return;
    this.#forget(offset, shared);
    if (!shared.buffer) return;
    if (shared.isDone) this.#buffers.give(shared.buffer);
    else this.#buffers.drop(shared.buffer);
  }

  #forget(offset: number, shared: Shared): void {
    if (this.#shared.get(offset) === shared) this.#shared.delete(offset);
  }

  async #read(buffer: Buffer, offset: number, length: number): Promise<number> {
    const damaged = (cause?: unknown): MirrorError =>
      new MirrorError('damaged', `${this.#what}: cannot read byte ${offset} of its file`, { cause });
    const { bytesRead } = await this.#handle.read(buffer, 0, length, offset).catch((error: unknown) => {
      throw damaged(error);
    });
    if (bytesRead === 0) throw damaged();
    return bytesRead;
  }
}

function firstBytes(parts: readonly Uint8Array[], length: number): Uint8Array[] {
  const found: Uint8Array[] = [];
  let left = length;
  for (const part of parts) {
    if (left <= 0) break;
    found.push(part.byteLength <= left ? part : part.subarray(0, left));
    left -= part.byteLength;
  }
  return found;
}
