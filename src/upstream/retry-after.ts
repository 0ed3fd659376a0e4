const least = 1000;
const most = 60 * 60 * 1000;

/**
 * Milliseconds that a `Retry-After` header asks to wait, between 1 s and 1 h: seconds, a date, or (as seen from Docker
 * Hub) seconds since the epoch. Undefined for nonsense.
 */
export function parseRetryAfter(header: string | undefined, now: number): number | undefined {
  if (header === undefined) return undefined;
  const figure = /^\d+$/.test(header) ? Number(header) : undefined;
  const wait =
    figure === undefined ? Date.parse(header) - now : figure > 1e9 ? figure * 1000 - now : figure * 1000;
  return Number.isNaN(wait) ? undefined : Math.min(most, Math.max(least, wait));
}
