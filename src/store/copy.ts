import type { FileHandle } from 'node:fs/promises';
import type { Writable } from 'node:stream';
import type { ByteRange } from '../oci/range.ts';
import { MirrorError } from '../util/errors.ts';
import type { Buffers } from './buffers.ts';
import { Outlet } from '../util/outlet.ts';

/** A file that is whole, or on its way. */
export interface Source {
  readonly what: string;
  readonly handle: FileHandle;
  /** Known at the latest when everything is there. */
  readonly size: number | undefined;
  readonly fault: MirrorError | undefined;
  /** How far a reader at `offset` may read now; a reader of the whole never gets the last byte unverified. */
  readableTo(offset: number, whole: boolean): number;
  /** Calls back once, at the next change; returns how to take that back. */
  onChange(wake: () => void): () => void;
}

/**
 * The serving loop: reads into one buffer while the other is being written, at the sink's pace, and ends the sink. A
 * reader looks for bytes and registers to wait in the same tick, and after any await looks again: else the last wake-up
 * is lost.
 */
export async function copyFile(
  source: Source,
  sink: Writable,
  range: ByteRange | undefined,
  buffers: Buffers,
): Promise<void> {
  const whole = range === undefined || (range.start === 0 && range.end === source.size);
  const outlet = new Outlet(sink);
  let offset = range?.start ?? 0;
  let writing: Promise<void> | undefined;
  buffers.enter();
  try {
    for (;;) {
      if (source.fault) throw source.fault;
      const end = range?.end ?? source.size;
      if (end !== undefined && offset >= end) break;
      const readable = Math.min(source.readableTo(offset, whole), end ?? Infinity);
      if (readable <= offset) {
        await outlet.until((wake) => source.onChange(wake));
        continue;
      }
      const buffer = buffers.take(readable - offset);
      const length = await readInto(source, buffer, offset, readable);
      offset += length;
      await writing;
      writing = outlet.write(buffer.subarray(0, length)).then(() => buffers.give(buffer));
      // Awaited in the next turn; a rejection before that is not an unhandled one.
      writing.catch(() => undefined);
    }
    await writing;
    await outlet.end();
  } finally {
    buffers.leave();
    outlet.close();
  }
}

async function readInto(source: Source, buffer: Buffer, offset: number, end: number): Promise<number> {
  const damaged = (cause?: unknown): MirrorError =>
    new MirrorError('damaged', `${source.what}: cannot read byte ${offset} of its file`, { cause });
  const { bytesRead } = await source.handle
    .read(buffer, 0, Math.min(buffer.length, end - offset), offset)
    .catch((error: unknown) => {
      throw damaged(error);
    });
  if (bytesRead === 0) throw damaged();
  return bytesRead;
}
