/** Half-open, in bytes. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/** `whole`: there is no range that counts, the answer is 200. */
export type RangeRequest = 'whole' | 'unsatisfiable' | 'several' | ByteRange;

const one = /^(\d*)-(\d*)$/;

/**
 * What a `Range` header asks of content of `size` bytes. What is not a range of bytes, or is garbage, is ignored as
 * RFC 9110 section 14.2 wants; a backward range is unsatisfiable, as the OCI conformance suite wants.
 */
export function parseRange(header: string | undefined, size: number): RangeRequest {
  if (!header?.startsWith('bytes=')) return 'whole';
  const specs = header.slice('bytes='.length);
  if (specs.includes(',')) return 'several';
  const [, first, last] = one.exec(specs.trim()) ?? [];
  if (first === undefined || last === undefined || (first === '' && last === '')) return 'whole';
  if (first === '') {
    const length = Math.min(Number(last), size);
    return length === 0 ? 'unsatisfiable' : { start: size - length, end: size };
  }
  const start = Number(first);
  const end = last === '' ? size : Math.min(Number(last) + 1, size);
  return start >= end ? 'unsatisfiable' : { start, end };
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
