import type { MirrorError } from '../../util/errors.ts';

/** How long cached upstream answers are used, in milliseconds. */
export interface TagPolicy {
  /** How long stale content is served while the upstream cannot be asked; 0: never. */
  readonly staleIfErrorMs: number;
  /** How long a definite "not found" is remembered. */
  readonly negativeTtlMs: number;
  /** `behind`: serve a tag that has just expired at once, and revalidate it in the background. */
  readonly revalidate: 'wait' | 'behind';
  /** A cached tag that the upstream has deleted: answer 404, or keep serving it. */
  readonly whenGone: '404' | 'keep';
}

export interface MirrorSettings {
  /** Covers everything before the first byte of an answer. */
  readonly firstByteTimeoutMs: number;
  readonly tags: TagPolicy;
}

/** How long after expiry a tag may be served before it is revalidated. */
const maxBehindMs = 24 * 60 * 60_000;

/** Times in ms since the epoch. If the clock was set back, nothing is fresh. */
export function isFresh(checkedAt: number, now: number, ttlMs: number): boolean {
  return now >= checkedAt && now - checkedAt < ttlMs;
}

/** Whether to serve now and revalidate in the background. */
export function mayRevalidateBehind(
  checkedAt: number,
  now: number,
  ttlMs: number,
  { revalidate }: TagPolicy,
): boolean {
  return revalidate === 'behind' && isFresh(checkedAt, now, ttlMs + maxBehindMs);
}

/** Whether to serve while the upstream cannot be asked. */
export function isServableStale(checkedAt: number, now: number, { staleIfErrorMs }: TagPolicy): boolean {
  return now - checkedAt < staleIfErrorMs;
}

/** Whether cached content may be served in place of this upstream fault. */
export function mayServeAfter({ row }: MirrorError, { whenGone }: TagPolicy): boolean {
  return row.stale === true || (row.definite === true && whenGone === 'keep');
}
