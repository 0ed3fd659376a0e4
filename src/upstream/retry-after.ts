const least = 1000;
const hour = 60 * 60 * 1000;

/**
 * Milliseconds that a `Retry-After` header asks to wait, between 1 s and `mostMs` (1 h): seconds, a date, or (as seen from
 * Docker Hub) seconds since the epoch. Undefined for nonsense.
 */
export function parseRetryAfter(header: string | undefined, now: number, mostMs = hour): number | undefined {
  if (header === undefined) return undefined;
  const figure = /^\d+$/.test(header) ? Number(header) : undefined;
  // JavaScript reads a date into many a figure.
  const date = /[a-z]/i.test(header) ? Date.parse(header) : NaN;
  const wait = figure === undefined ? date - now : figure > 1e9 ? figure * 1000 - now : figure * 1000;
  return Number.isNaN(wait) ? undefined : Math.min(Math.max(least, mostMs), Math.max(least, wait));
}
