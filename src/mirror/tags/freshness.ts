import type { MirrorError } from '../../util/errors.ts';

/** How long what the upstream once said is believed. All in milliseconds. */
export interface TagPolicy {
  /** While the upstream cannot be asked; 0: never. */
  readonly staleIfErrorMs: number;
  /** How long a definite no is remembered. */
  readonly negativeTtlMs: number;
  /** `behind`: what has just run out is served at once, and asked about after that. */
  readonly revalidate: 'wait' | 'behind';
  /** What becomes of a tag that is held and that the upstream has deleted: a definite no, or it is kept. */
  readonly whenGone: '404' | 'keep';
}

export interface MirrorSettings {
  /** Over everything before the first byte of an answer. */
  readonly firstByteTimeoutMs: number;
  readonly tags: TagPolicy;
}

/** How long after it has run out a tag may still be served before it is asked about. */
const behindForMs = 24 * 60 * 60_000;

/** Times are ms since the epoch; a clock that was set back makes nothing fresh. */
export function isFresh(checkedAt: number, now: number, ttlMs: number): boolean {
  return now >= checkedAt && now - checkedAt < ttlMs;
}

/** Whether it may be served now and be asked about behind the answer. */
export function isFreshEnough(
  checkedAt: number,
  now: number,
  ttlMs: number,
  { revalidate }: TagPolicy,
): boolean {
  return revalidate === 'behind' && isFresh(checkedAt, now, ttlMs + behindForMs);
}

/** Whether it may still be served while the upstream cannot be asked. */
export function isServableStale(checkedAt: number, now: number, { staleIfErrorMs }: TagPolicy): boolean {
  return now - checkedAt < staleIfErrorMs;
}

/** Whether what is held may still be served after this fault of the upstream. */
export function mayServeAfter({ row }: MirrorError, { whenGone }: TagPolicy): boolean {
  return row.stale === true || (row.definite === true && whenGone === 'keep');
}
