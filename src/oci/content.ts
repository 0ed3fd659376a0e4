import type { Writable } from 'node:stream';
import type { Digest } from './digest.ts';
import type { ByteRange } from './range.ts';

export interface Descriptor {
  readonly digest: Digest;
  readonly size: number;
  readonly mediaType: string;
}

/**
 * A lease on the bytes of one digest, on disk, in memory or still arriving: its holder cannot tell which. What is
 * leased is not evicted.
 */
export interface Content {
  readonly digest: Digest;
  /** Undefined while the upstream has not told: then the answer is chunked and Range is ignored. */
  readonly size: number | undefined;
  readonly mediaType: string;
  /** Makes ready what copyTo needs. Rejects with `damaged`: then the bytes are to be fetched again. */
  prepare(): Promise<void>;
  /**
   * Writes the bytes, or those of `range`, at the sink's pace, and ends the sink. Rejects with the fault, the sink left
   * unended: whoever reads from 0 to the end has then not had the last byte.
   */
  copyTo(sink: Writable, range?: ByteRange): Promise<void>;
  /** Gives the lease back. Twice is fine. */
  release(): void;
}

/** Up to this size bytes are verified before anything of them is shown. */
export const smallSize = 64 * 1024;

export const blobMediaType = 'application/octet-stream';
