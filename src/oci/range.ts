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

const one = /^(\d*)-(\d*)$/;

/**
 * What a `Range` header asks for. What is not a range of bytes, or is garbage, is ignored as RFC 9110 section 14.2
 * wants.
 */
export function parseWant(header: string | undefined): Want | 'several' {
  if (!header?.startsWith('bytes=')) return 'whole';
  const specs = header.slice('bytes='.length);
  if (specs.includes(',')) return 'several';
  const [, first, last] = one.exec(specs.trim()) ?? [];
  if (first === undefined || last === undefined || (first === '' && last === '')) return 'whole';
  if (first === '') return { last: Number(last) };
  return { start: Number(first), end: last === '' ? Infinity : Number(last) + 1 };
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
