import type { ByteRange } from '../../oci/range.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import type { UpstreamBlob } from '../../upstream/answers.ts';
import { toFault } from '../../upstream/http/transport.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import { MirrorError } from '../../util/errors.ts';

/** A byte range that one upstream connection is fetching. */
export interface Span {
  /** Where it stands. */
  start: number;
  end: number;
  /** It has one of the connections that are counted. */
  isConnected: boolean;
  readonly stop: AbortController;
}

export function createSpan({ start, end }: ByteRange, isConnected = false): Span {
  return { start, end, isConnected, stop: new AbortController() };
}

/** Why a span is stopped before its end. */
export const notNeeded = new Error('another span is needed more');

export interface TransferContext {
  /** What is being done to what, for faults. */
  readonly what: string;
  readonly ingest: Ingest;
  readonly source: BlobSource;
  /** Over everything before the first byte of an answer. */
  readonly firstByteTimeoutMs: number;
  /** Nothing is set aside for what the registry only says that it will send. */
  readonly reservesInSteps: boolean;
  /** What the file will hold when the span and all others have come; undefined if nobody knows. */
  readonly room: (span: Span) => number | undefined;
  /** So many bytes have come and are to be written. Returns whether they are worth it. */
  readonly onBytes: (count: number) => boolean;
  /** They are written; `fresh` of them were missing. */
  readonly onWritten: (fresh: number) => void;
}

/** Asks for one span of a blob and writes its body to the ingest. */
export class Transfer {
  readonly #context: TransferContext;
  #takesRanges = true;

  constructor(context: TransferContext) {
    this.#context = context;
  }

  /** Whether the upstream takes ranges, as far as it has shown. */
  get takesRanges(): boolean {
    return this.#takesRanges;
  }

  /** What the first answer shows. */
  began({ size, start, end }: UpstreamBlob): void {
    this.#takesRanges = size !== undefined && (start > 0 || end !== size);
  }

  /** Brings a span over a connection that its caller holds. Rejects with the fault that broke it off. */
  async fetch(span: Span): Promise<void> {
    const { ingest, source, firstByteTimeoutMs, reservesInSteps, room } = this.#context;
    const { signal } = span.stop;
    const deadline = AbortSignal.any([AbortSignal.timeout(firstByteTimeoutMs), signal]);
    await ingest.reserve(room(span) ?? 0, deadline);
    const blob = await source.fetch({ start: span.start, end: span.end }, deadline, true);
    const { size } = ingest;
    if (size !== undefined && blob.size !== undefined && blob.size !== size) {
      blob.body.discard();
      throw this.#invalid(`the upstream sent one of ${blob.size} bytes, not ${size}`);
    }
    if (blob.size !== undefined) ingest.setSize(blob.size);
    this.#takesRanges =
      blob.start === span.start && blob.size !== undefined && (span.start > 0 || this.#takesRanges);
    if (!this.#takesRanges) {
      // It sends everything, and what is there already is passed over.
      span.start = blob.start;
      span.end = blob.end ?? Infinity;
      if (blob.size !== undefined && !reservesInSteps) await ingest.reserve(blob.size);
    }
    await this.receive(span, blob);
  }

  /** Writes the body of an answer, as far as the span goes. Rejects with the fault that broke it off. */
  async receive(span: Span, { body, start, end, size }: UpstreamBlob): Promise<void> {
    const { what, ingest, onBytes, onWritten } = this.#context;
    let offset = start;
    let added = 0;
    const take = async (chunks: Buffer[]): Promise<boolean> => {
      const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
      if (offset + length > (end ?? Infinity)) throw this.#invalid('more bytes came than were announced');
      if (!onBytes(length)) return false;
      const fresh = await ingest.write(offset, chunks);
      offset += length;
      added += fresh;
      span.start = offset;
      onWritten(fresh);
      // Where a span was cut in two, the rest is the other one's.
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
    if (added === 0 && !ingest.isComplete && offset >= span.end) throw this.#invalid('nothing new came');
  }

  #invalid(why: string): MirrorError {
    return new MirrorError('upstream-invalid', `${this.#context.what}: ${why}`);
  }
}
