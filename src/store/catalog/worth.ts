/**
 * Cost of a request to the upstream, beside the bytes, expressed in bytes; `pullCost`: of one that counts as a pull.
 */
const fetchCost = 1_000_000;
const pullCost = 16_000_000;
const minSize = 4096;

/** Further uses do not raise the priority: a blob that was popular once must become evictable. */
export const maxUses = 16;

/**
 * Bytes saved by each use, per byte stored (Greedy-Dual-Size-Frequency). Priority = priority of the blob evicted last
 * + uses × worth. Chosen by `node bench/eviction.ts`; the table is in docs/benchmarks.md.
 */
export function worthOf(size: number, isManifest: boolean): number {
  return (size + (isManifest ? pullCost : fetchCost)) / Math.max(size, minSize);
}
