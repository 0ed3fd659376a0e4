/** The headers of an answer, by their names in lower case. */
export type Headers = Readonly<Record<string, string | string[] | undefined>>;

const least = 1000;
const hour = 60 * 60 * 1000;

/** A header that must not come twice; the first counts. */
export function one(headers: Headers, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/** What `Retry-After` asks to wait, by the clock of whoever says it. */
export function retryAfterOf(headers: Headers, now: number, mostMs?: number): number | undefined {
  const said = Date.parse(one(headers, 'date') ?? '');
  return parseRetryAfter(one(headers, 'retry-after'), Number.isNaN(said) ? now : said, mostMs);
}

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
