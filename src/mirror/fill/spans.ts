import type { ByteRange } from '../../oci/range.ts';
import type { Reader } from '../../store/ingest/ingest.ts';
import type { Intervals } from '../../store/ingest/intervals.ts';

/** What a fill knows when it decides what to ask for next. */
export interface Situation {
  readonly size: number;
  readonly present: Intervals;
  /** What running spans have still to bring. */
  readonly running: readonly ByteRange[];
  readonly readers: Iterable<Reader>;
  /** The whole is wanted, not only what readers are waiting for. */
  readonly isWholeWanted: boolean;
  readonly spanBytes: number;
}

export interface NextSpan extends ByteRange {
  /** A reader can get nothing more before this has come. */
  readonly urgent: boolean;
}

/** A reader this far ahead of a span that will reach it does not wait for it. */
const tooFarBytes = 4 * 1024 * 1024;
const largestFactor = 8;

/** How long the spans of a blob are: a thirty-second of it, within bounds. */
export function spanLength(size: number, spanBytes: number): number {
  return Math.min(Math.max(spanBytes, Math.ceil(size / 32)), largestFactor * spanBytes);
}

/**
 * What to fetch next: what is missing nearest to a reader's position, else, if the whole is wanted, what is missing
 * first. Undefined when all that is wanted is there or on its way. A span may begin within what another one was to
 * bring: that one then ends there.
 */
export function nextSpan(situation: Situation): NextSpan | undefined {
  const { size, readers, present, isWholeWanted } = situation;
  let best: (NextSpan & { distance: number }) | undefined;
  for (const reader of readers) {
    const stands = present.endOfRun(reader.offset);
    // What follows is wanted too, if the whole is.
    const gap = gapFrom(stands, isWholeWanted ? size : (reader.end ?? size), situation);
    if (!gap || gap.start >= (reader.end ?? size)) continue;
    const distance = gap.start - reader.offset;
    if (!best || distance < best.distance) best = { ...gap, urgent: gap.start === stands, distance };
  }
  const gap = best ?? (isWholeWanted ? gapFrom(0, size, situation) : undefined);
  if (!gap) return undefined;
  const length = spanLength(size, situation.spanBytes);
  // Rather a somewhat longer span than a tiny one behind it.
  const end = gap.end - gap.start > 1.5 * length ? gap.start + length : gap.end;
  return { start: gap.start, end, urgent: best?.urgent ?? false };
}

/** A reader waits for just what this span will bring next. */
export function isAwaited(
  { start, end }: ByteRange,
  { readers, present }: Pick<Situation, 'readers' | 'present'>,
): boolean {
  for (const { offset } of readers) {
    const stands = present.endOfRun(offset);
    if (start <= stands && stands < end) return true;
  }
  return false;
}

function gapFrom(from: number, to: number, { present, running }: Situation): ByteRange | undefined {
  let start = from;
  for (;;) {
    start = present.endOfRun(start);
    if (start >= to) return undefined;
    const at = start;
    const span = running.find((each) => each.start <= at && at < each.end);
    if (!span) break;
    // Where a reader stands and would wait long, the span is cut in two.
    if (at === from && at - span.start > tooFarBytes) return { start: at, end: Math.min(span.end, to) };
    start = span.end;
  }
  const claimed = running.reduce(
    (least, span) => (span.start > start ? Math.min(least, span.start) : least),
    to,
  );
  return { start, end: Math.min(claimed, present.next(start)) };
}
