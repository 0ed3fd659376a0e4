import type { MirrorError } from '../../util/errors.ts';
import type { Outlet } from '../../util/outlet.ts';
import type { Buffers } from './buffers.ts';
import type { Reads } from './reads.ts';

/** A complete or growing file, as seen by one reader. */
export interface Source {
  readonly reads: Reads;
  /** Position of the reader. */
  offset: number;
  /** Position at which to stop; undefined while the size is unknown. */
  readonly end: number | undefined;
  readonly fault: MirrorError | undefined;
  /** Absent bytes will not be written to this file any more. */
  readonly isFull: boolean;
  /** End of the bytes readable now. A reader of the whole blob gets the last byte only after verification. */
  readableTo(offset: number): number;
  /** Calls `wake` once, at the next change. Returns a function that cancels. */
  onChange(wake: () => void): () => void;
}

/**
 * Copies to the outlet at its pace, reading into one buffer while the other is written. Availability is checked and
 * the wait registered in the same tick, else a wake-up would be lost. Ends at the source's end, or before it if the
 * file is full.
 */
export async function copyFile(source: Source, outlet: Outlet, buffers: Buffers): Promise<void> {
  let writing: Promise<void> | undefined;
  buffers.enter();
  try {
    for (;;) {
      if (source.fault) throw source.fault;
      const { offset, end } = source;
      if (end !== undefined && offset >= end) break;
      const readable = Math.min(source.readableTo(offset), end ?? Infinity);
      if (readable <= offset) {
        if (source.isFull) break;
        await outlet.until((wake) => source.onChange(wake));
        continue;
      }
      const read = await source.reads.at(offset, readable);
      try {
        await writing;
      } catch (error) {
        read.release(true);
        throw error;
      }
      source.offset += read.length;
      writing = outlet.write(...read.bytes).then(
        () => read.release(true),
        (error: unknown) => {
          read.release(false);
          throw error;
        },
      );
      // Awaited in the next iteration; until then a rejection must not count as unhandled.
      writing.catch(() => undefined);
    }
    await writing;
  } finally {
    buffers.leave();
  }
}
