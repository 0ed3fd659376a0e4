import type { ByteRange } from '../../oci/range.ts';
import type { Reader } from '../../store/ingest/ingest.ts';
import type { Intervals } from '../../store/ingest/intervals.ts';

/** Input for choosing the next span. */
export interface SpanInput {
  readonly size: number;
  readonly present: Intervals;
  /** Remaining ranges of running spans. */
  readonly running: readonly ByteRange[];
  readonly readers: Iterable<Reader>;
  /** Fetch the whole blob, not only what readers wait for. */
  readonly isWholeWanted: boolean;
  readonly spanBytes: number;
}

export interface NextSpan extends ByteRange {
  /** A reader is blocked until this span arrives. */
  readonly urgent: boolean;
}

/** A reader further than this ahead of a running span gets a span of its own. */
const maxWaitBytes = 4 * 1024 * 1024;
const largestFactor = 8;

/** Span length in bytes: 1/32 of the blob, within bounds. */
export function spanLength(size: number, spanBytes: number): number {
  return Math.min(Math.max(spanBytes, Math.ceil(size / 32)), largestFactor * spanBytes);
}

/**
 * The next span: the gap nearest to a reader, else, if the whole is wanted, the first gap. Undefined if all that is
 * wanted is stored or being fetched. A span may start within a running one, which then ends there.
 */
export function nextSpan(input: SpanInput): NextSpan | undefined {
  const { size, readers, present, isWholeWanted } = input;
  let best: (NextSpan & { distance: number }) | undefined;
  for (const reader of readers) {
    const blockedAt = present.endOfRun(reader.offset);
    // If the whole is wanted, so are the bytes after the range.
    const gap = gapFrom(blockedAt, isWholeWanted ? size : (reader.end ?? size), input);
    if (!gap || gap.start >= (reader.end ?? size)) continue;
    const distance = gap.start - reader.offset;
    if (!best || distance < best.distance) best = { ...gap, urgent: gap.start === blockedAt, distance };
  }
  const gap = best ?? (isWholeWanted ? gapFrom(0, size, input) : undefined);
  if (!gap) return undefined;
  const length = spanLength(size, input.spanBytes);
  // A slightly longer span avoids a tiny one after it.
  const end = gap.end - gap.start > 1.5 * length ? gap.start + length : gap.end;
  return { start: gap.start, end, urgent: best?.urgent ?? false };
}

/** Whether a reader is blocked on the next bytes of this span. */
export function isAwaited(
  { start, end }: ByteRange,
  { readers, present }: Pick<SpanInput, 'readers' | 'present'>,
): boolean {
  for (const { offset } of readers) {
    const blockedAt = present.endOfRun(offset);
    if (start <= blockedAt && blockedAt < end) return true;
  }
  return false;
}

function gapFrom(from: number, to: number, { present, running }: SpanInput): ByteRange | undefined {
  let start = from;
  for (;;) {
    start = present.endOfRun(start);
    if (start >= to) return undefined;
    const at = start;
    const span = running.find((each) => each.start <= at && at < each.end);
    if (!span) break;
    // Split the running span where a reader would otherwise wait long.
    if (at === from && at - span.start > maxWaitBytes) return { start: at, end: Math.min(span.end, to) };
    start = span.end;
  }
  const nextSpanAt = running.reduce(
    (least, span) => (span.start > start ? Math.min(least, span.start) : least),
    to,
  );
  return { start, end: Math.min(nextSpanAt, present.next(start)) };
}
