import type { ByteRange } from '../../oci/range.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import { toFault } from '../../upstream/http/transport.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { UpstreamBlob } from '../../upstream/responses.ts';
import { MirrorError } from '../../util/errors.ts';

/** A byte range that one upstream connection is fetching. */
export interface Span {
  /** Offset of the next byte. */
  start: number;
  end: number;
  /** Holds a connection. */
  isConnected: boolean;
  readonly stop: AbortController;
}

export function createSpan({ start, end }: ByteRange, isConnected = false): Span {
  return { start, end, isConnected, stop: new AbortController() };
}

/** The abort reason of a span that is stopped before its end. */
export const preempted = new Error('span stopped: connection needed elsewhere');

export interface TransferContext {
  /** Operation and object, for error messages. */
  readonly what: string;
  readonly ingest: Ingest;
  readonly source: BlobSource;
  /** Covers everything before the first byte of a response. */
  readonly firstByteTimeoutMs: number;
  /** Reserve space for received bytes only, not for the size that the registry announces. */
  readonly reservesInSteps: boolean;
  /** Bytes of the file once this and all other spans have ended; undefined if unknown. */
  readonly room: (span: Span) => number | undefined;
  /** Bytes were received. Returns whether to write them and go on. */
  readonly onBytes: (count: number) => boolean;
  /** Bytes were written; `fresh`: how many were missing before. */
  readonly onWritten: (fresh: number) => void;
}

/** Requests one span of a blob and writes its body to the ingest. */
export class Transfer {
  readonly #context: TransferContext;
  #takesRanges = true;

  constructor(context: TransferContext) {
    this.#context = context;
  }

  /** Whether the upstream supports range requests, as far as observed. */
  get takesRanges(): boolean {
    return this.#takesRanges;
  }

  /** Learns range support from the first response. */
  learnFrom({ size, start, end }: UpstreamBlob): void {
    this.#takesRanges = size !== undefined && (start > 0 || end !== size);
  }

  /** Fetches a span over a connection that the caller holds. Rejects with the fault that interrupted it. */
  async fetch(span: Span): Promise<void> {
    const { ingest, source, firstByteTimeoutMs, reservesInSteps, room } = this.#context;
    const { signal } = span.stop;
    const deadline = AbortSignal.any([AbortSignal.timeout(firstByteTimeoutMs), signal]);
    await ingest.reserve(room(span) ?? 0, deadline);
    const blob = await source.fetch({ start: span.start, end: span.end }, deadline, true);
    const { size } = ingest;
    if (size !== undefined && blob.size !== undefined && blob.size !== size) {
      blob.body.discard();
      throw this.#invalid(`the upstream sent ${blob.size} bytes, expected ${size}`);
    }
    if (blob.size !== undefined) ingest.setSize(blob.size);
    this.#takesRanges =
      blob.start === span.start && blob.size !== undefined && (span.start > 0 || this.#takesRanges);
    if (!this.#takesRanges) {
      // The upstream sends the whole blob; bytes already stored are skipped.
      span.start = blob.start;
      span.end = blob.end ?? Infinity;
      if (blob.size !== undefined && !reservesInSteps) await ingest.reserve(blob.size);
    }
    await this.receive(span, blob);
  }

  /** Writes a response body up to the span's end. Rejects with the fault that interrupted it. */
  async receive(span: Span, { body, start, end, size }: UpstreamBlob): Promise<void> {
    const { what, ingest, onBytes, onWritten } = this.#context;
    let offset = start;
    let added = 0;
    const take = async (chunks: Buffer[]): Promise<boolean> => {
      const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
      if (offset + length > (end ?? Infinity)) throw this.#invalid('more bytes than announced');
      if (!onBytes(length)) return false;
      const fresh = await ingest.write(offset, chunks);
      offset += length;
      added += fresh;
      span.start = offset;
      onWritten(fresh);
      // The span may have been split meanwhile: the rest belongs to the other half.
      return offset < span.end || span.end >= (end ?? Infinity);
    };
    if (start !== end) {
      await body.pipe(take, span.stop.signal).catch((error: unknown) => {
        throw toFault(what, error);
      });
    }
    if (end !== undefined && offset < Math.min(end, span.end)) {
      throw new MirrorError('upstream-down', `${what}: ended after ${offset} of ${end} bytes`);
    }
    if (size === undefined) ingest.setSize(offset);
    if (added === 0 && !ingest.isComplete && offset >= span.end) throw this.#invalid('no new bytes received');
  }

  #invalid(why: string): MirrorError {
    return new MirrorError('upstream-invalid', `${this.#context.what}: ${why}`);
  }
}
