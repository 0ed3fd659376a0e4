import type { MirrorError } from '../../util/errors.ts';
import type { Outlet } from '../../util/outlet.ts';
import type { Buffers } from './buffers.ts';
import type { Reads } from './reads.ts';

/** A file that is whole, or on its way, as one reader sees it. */
export interface Source {
  readonly reads: Reads;
  /** Where the reader stands. */
  offset: number;
  /** Where it wants to stop; undefined while the size is not known. */
  readonly end: number | undefined;
  readonly fault: MirrorError | undefined;
  /** What is not there will not come into this file any more. */
  readonly isFull: boolean;
  /** How far the reader may read now; a reader of the whole never gets the last byte unverified. */
  readableTo(offset: number): number;
  /** Calls back once, at the next change; returns how to take that back. */
  onChange(wake: () => void): () => void;
}

/**
 * The serving loop: reads into one buffer while the other is being written, at the sink's pace. A reader looks for
 * bytes and registers to wait in the same tick, and after any await looks again: else the last wake-up is lost. Ends
 * with the source's offset at its end, or before it if the file is full.
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
      // Awaited in the next turn; a rejection before that is not an unhandled one.
      writing.catch(() => undefined);
    }
    await writing;
  } finally {
    buffers.leave();
  }
}
