import type { Writable } from 'node:stream';
import type { Digest } from './digest.ts';
import type { ByteRange } from './range.ts';

export interface Descriptor {
  readonly digest: Digest;
  readonly size: number;
  readonly mediaType: string;
}

/**
 * A lease on the content of one digest, whether on disk, in memory or still arriving. Leased content is not evicted.
 */
export interface Content {
  readonly digest: Digest;
  /** Bytes. Undefined while the upstream has not told: the response is then chunked and Range is ignored. */
  readonly size: number | undefined;
  readonly mediaType: string;
  /** Opens the content for `copyTo`. Rejects with `damaged` if it must be fetched again. */
  prepare(): Promise<void>;
  /**
   * Writes the content, or `range`, at the sink's pace and ends the sink. On a fault it rejects and does not end the sink;
   * a reader of the whole content has then not received the last byte.
   */
  copyTo(sink: Writable, range?: ByteRange): Promise<void>;
  /** Releases the lease. Idempotent. */
  release(): void;
}

/** Content up to this size, in bytes, is verified before any of it is sent. */
export const smallSize = 64 * 1024;

export const blobMediaType = 'application/octet-stream';
