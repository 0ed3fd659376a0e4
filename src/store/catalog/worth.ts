/** What one more request to the upstream costs beside the bytes, in bytes; and where it counts as a pull. */
const fetchCost = 1_000_000;
const pullCost = 16_000_000;
const leastSize = 4096;

/** Uses beyond these say nothing more about the next one: what was popular once must be able to leave. */
export const mostUses = 16;

/**
 * What each use of a blob saves for each byte that it takes (Greedy-Dual-Size-Frequency). A blob's priority is this
 * times its uses, above the priority of what was evicted last: so it ages without being touched. Chosen by
 * `node bench/eviction.ts`; the table is in docs/benchmarks.md.
 */
export function worthOf(size: number, isManifest: boolean): number {
  return (size + (isManifest ? pullCost : fetchCost)) / Math.max(size, leastSize);
}
