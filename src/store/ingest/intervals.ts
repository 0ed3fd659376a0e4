import type { ByteRange } from '../../oci/range.ts';

/** A set of byte intervals: sorted, disjoint and not adjacent. */
export class Intervals {
  #ranges: ByteRange[] = [];
  #total = 0;

  constructor(ranges: Iterable<ByteRange> = []) {
    for (const { start, end } of ranges) this.add(start, end);
  }

  /** Number of bytes in the set. */
  get total(): number {
    return this.#total;
  }

  get ranges(): readonly ByteRange[] {
    return this.#ranges;
  }

  add(start: number, end: number): void {
    if (start >= end) return;
    const first = this.#firstEndingAtOrAfter(start);
    let past = first;
    let merged: ByteRange = { start, end };
    for (let range = this.#ranges[past]; range && range.start <= end; range = this.#ranges[++past]) {
      merged = { start: Math.min(merged.start, range.start), end: Math.max(merged.end, range.end) };
      this.#total -= range.end - range.start;
    }
    this.#ranges.splice(first, past - first, merged);
    this.#total += merged.end - merged.start;
  }

  /** End of the interval that contains `offset`; `offset` itself if none does. */
  endOfRun(offset: number): number {
    const range = this.#ranges[this.#firstEndingAtOrAfter(offset + 1)];
    return range && range.start <= offset ? range.end : offset;
  }

  /** First byte of the set at or after `offset`; Infinity if there is none. */
  next(offset: number): number {
    const range = this.#ranges[this.#firstEndingAtOrAfter(offset + 1)];
    return range ? Math.max(range.start, offset) : Infinity;
  }

  has({ start, end }: ByteRange): boolean {
    return this.endOfRun(start) >= end;
  }

  #firstEndingAtOrAfter(offset: number): number {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const range = this.#ranges[middle];
      if (range && range.end < offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
