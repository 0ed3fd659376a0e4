import { MirrorError } from '../util/errors.ts';

/** `[start, end)` in bytes. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/**
 * A requested range, possibly of content of unknown size: `end` may lie past the content or be Infinity; `last`: so many
 * bytes at the end.
 */
export type Want = 'whole' | ByteRange | { readonly last: number };

/** The ranges of a request, in order. */
export type Wants = Want | readonly Want[];

export function isMultiRange(wants: Wants): wants is readonly Want[] {
  return Array.isArray(wants);
}

/** `bytes=0-` counts as the whole. */
export function isWholeWant(want: Want): boolean {
  return want === 'whole' || ('start' in want && want.start === 0 && want.end === Infinity);
}

const one = /^(\d*)-(\d*)$/;

/** Lazy pullers send many ranges, and retry with fewer after a 400. */
const maxRanges = 256;

/**
 * Parses a `Range` header. Other units and malformed values are ignored (RFC 9110 section 14.2). Throws
 * `ranges-unsupported` for more than 256 ranges.
 */
export function parseRanges(header: string | undefined): Wants {
  if (!header?.startsWith('bytes=')) return 'whole';
  const specs = header
    .slice('bytes='.length)
    .split(',', 2 * maxRanges + 1)
    .map((spec) => spec.trim())
    .filter((spec) => spec !== '');
  if (specs.length > maxRanges)
    throw new MirrorError('ranges-unsupported', `Range: more than ${maxRanges} ranges`);
  const wants: Want[] = [];
  for (const spec of specs) {
    const [, first, last] = one.exec(spec) ?? [];
    if (first === undefined || last === undefined || (first === '' && last === '')) return 'whole';
    if (first === '') wants.push({ last: Number(last) });
    else wants.push({ start: Math.min(Number(first), farthest), end: endAfter(last) });
  }
  const [only] = wants;
  return wants.length > 1 ? wants : (only ?? 'whole');
}

/** Largest exact offset. */
const farthest = Number.MAX_SAFE_INTEGER - 1;

function endAfter(last: string): number {
  const end = Number(last) + 1;
  return last === '' || end > farthest ? Infinity : end;
}

/** A range that covers all of them, without knowing the size; the whole if one counts from the end. */
export function enclosingRange(wants: Wants): Want {
  if (!isMultiRange(wants)) return wants;
  const ranges = wants.flatMap((want) => (want !== 'whole' && 'start' in want ? [want] : []));
  if (ranges.length < wants.length) return 'whole';
  return {
    start: Math.min(...ranges.map(({ start }) => start)),
    end: Math.max(...ranges.map(({ end }) => end)),
  };
}

/**
 * The satisfiable ranges of content of `size` bytes, in order. Throws `ranges-unsupported` if their sum exceeds `size`:
 * overlapping ranges would amplify a small request.
 */
export function resolveWants(wants: Wants, size: number): ByteRange[] {
  const ranges = [wants].flat().flatMap((want) => resolveWant(want, size) ?? []);
  if (ranges.reduce((sum, { start, end }) => sum + end - start, 0) <= size) return ranges;
  throw new MirrorError('ranges-unsupported', `Range: overlapping ranges exceed the size of the content`);
}

/**
 * The range within content of `size` bytes; undefined if unsatisfiable. A backward range is unsatisfiable, as the OCI
 * conformance suite requires.
 */
export function resolveWant(want: Want, size: number): ByteRange | undefined {
  if (want === 'whole') return { start: 0, end: size };
  const start = 'last' in want ? Math.max(0, size - want.last) : want.start;
  const end = 'last' in want ? size : Math.min(want.end, size);
  return start < end ? { start, end } : undefined;
}

/** Range and total of a `Content-Range: bytes a-b/total` header; undefined if malformed. */
export function parseContentRange(
  header: string | undefined,
): { range: ByteRange; total: number } | undefined {
  const [, first, last, total] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(header ?? '') ?? [];
  if (first === undefined) return undefined;
  const parsed = { range: { start: Number(first), end: Number(last) + 1 }, total: Number(total) };
  const { start, end } = parsed.range;
  return start < end && end <= parsed.total && Number.isSafeInteger(parsed.total) ? parsed : undefined;
}

/** The total in the `Content-Range` of a 416, which has an asterisk for the range; undefined if malformed. */
export function parseUnsatisfied(header: string | undefined): number | undefined {
  const total = Number(/^bytes \*\/(\d+)$/.exec(header ?? '')?.[1] ?? NaN);
  return Number.isSafeInteger(total) ? total : undefined;
}
