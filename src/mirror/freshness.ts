/** How long what the upstream once said is believed. All in milliseconds. */
export interface TagPolicy {
  /** 0: ask every time. */
  ttlMs: number;
  /** While the upstream cannot be asked; 0: never. */
  staleIfErrorMs: number;
  /** How long a definite no is remembered. */
  negativeTtlMs: number;
}

/** Times are ms since the epoch; a clock that was set back makes nothing fresh. */
export function isFresh(checkedAt: number, now: number, ttlMs: number): boolean {
  return now >= checkedAt && now - checkedAt < ttlMs;
}

/** Whether it may still be served while the upstream cannot be asked. */
export function isServableStale(checkedAt: number, now: number, { staleIfErrorMs }: TagPolicy): boolean {
  return now - checkedAt < staleIfErrorMs;
}
