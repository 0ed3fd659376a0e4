import { MirrorError } from '../util/errors.ts';

/** Half-open, in bytes. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/**
 * What is asked of content whose size may not be known yet: the end of a range may lie past it, or be Infinity, and
 * `last` means that many bytes from its end.
 */
export type Want = 'whole' | ByteRange | { readonly last: number };

/** What a request asks for: one thing, or several in their order. */
export type Wants = Want | readonly Want[];

export function isSeveral(wants: Wants): wants is readonly Want[] {
  return Array.isArray(wants);
}

/** `bytes=0-` is the whole too. */
export function isWholeWant(want: Want): boolean {
  return want === 'whole' || ('start' in want && want.start === 0 && want.end === Infinity);
}

const one = /^(\d*)-(\d*)$/;

/** Lazy pullers ask for many at once, and for fewer when that is refused with 400. */
const maxRanges = 256;

/**
 * Reads a `Range` header. What is not ranges of bytes, or is garbage, is ignored as RFC 9110 section 14.2 wants. Throws
 * `ranges-unsupported` for more than 256.
 */
export function parseRanges(header: string | undefined): Wants {
  if (!header?.startsWith('bytes=')) return 'whole';
  const specs = header
    .slice('bytes='.length)
    .split(',', 2 * maxRanges + 1)
    .map((spec) => spec.trim())
    .filter((spec) => spec !== '');
  if (specs.length > maxRanges)
    throw new MirrorError('ranges-unsupported', `Range: more than ${maxRanges} at once`);
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

/** As far as is counted exactly: no content is that long. */
const farthest = Number.MAX_SAFE_INTEGER - 1;

function endAfter(last: string): number {
  const end = Number(last) + 1;
  return last === '' || end > farthest ? Infinity : end;
}

/** What covers all of them, before the size may be known. */
export function hullOf(wants: Wants): Want {
  if (!isSeveral(wants)) return wants;
  const ranges = wants.flatMap((want) => (want !== 'whole' && 'start' in want ? [want] : []));
  if (ranges.length < wants.length) return 'whole';
  return {
    start: Math.min(...ranges.map(({ start }) => start)),
    end: Math.max(...ranges.map(({ end }) => end)),
  };
}

/**
 * Those bytes of content of `size` bytes that are wanted and there, in order. Throws `ranges-unsupported` when they are
 * more than the whole, which happens only where they overlap: nobody needs that, and it costs many times its request.
 */
export function resolveWants(wants: Wants, size: number): ByteRange[] {
  const ranges = [wants].flat().flatMap((want) => resolveWant(want, size) ?? []);
  if (ranges.reduce((sum, { start, end }) => sum + end - start, 0) <= size) return ranges;
  throw new MirrorError('ranges-unsupported', `Range: overlapping ranges that are more than the whole`);
}

/**
 * The bytes that are wanted of content of `size` bytes; undefined when there are none such. A backward range is
 * unsatisfiable, as the OCI conformance suite wants.
 */
export function resolveWant(want: Want, size: number): ByteRange | undefined {
  if (want === 'whole') return { start: 0, end: size };
  const start = 'last' in want ? Math.max(0, size - want.last) : want.start;
  const end = 'last' in want ? size : Math.min(want.end, size);
  return start < end ? { start, end } : undefined;
}

/** The range and total of a `Content-Range: bytes a-b/total` header; undefined when it says anything else. */
export function parseContentRange(
  header: string | undefined,
): { range: ByteRange; total: number } | undefined {
  const [, first, last, total] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(header ?? '') ?? [];
  if (first === undefined) return undefined;
  const parsed = { range: { start: Number(first), end: Number(last) + 1 }, total: Number(total) };
  const { start, end } = parsed.range;
  return start < end && end <= parsed.total && Number.isSafeInteger(parsed.total) ? parsed : undefined;
}

/** The total that the `Content-Range` of a 416 tells: an asterisk in place of the range. */
export function parseUnsatisfied(header: string | undefined): number | undefined {
  const total = Number(/^bytes \*\/(\d+)$/.exec(header ?? '')?.[1] ?? NaN);
  return Number.isSafeInteger(total) ? total : undefined;
}
