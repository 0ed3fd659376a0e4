/** Response headers, by lower-case name. */
export type Headers = Readonly<Record<string, string | string[] | undefined>>;

const minWaitMs = 1000;
const hourMs = 60 * 60 * 1000;

/** The first value of a header. */
export function headerOf(headers: Headers, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/** The wait in ms that `Retry-After` asks for, by the sender's clock (`Date`). */
export function retryAfterOf(headers: Headers, now: number, mostMs?: number): number | undefined {
  const date = Date.parse(headerOf(headers, 'date') ?? '');
  return parseRetryAfter(headerOf(headers, 'retry-after'), Number.isNaN(date) ? now : date, mostMs);
}

/**
 * The wait in ms of a `Retry-After` header, between 1 s and `mostMs` (1 h): seconds, a date, or (as Docker Hub sends)
 * seconds since the epoch. Undefined if invalid.
 */
export function parseRetryAfter(
  header: string | undefined,
  now: number,
  mostMs = hourMs,
): number | undefined {
  if (header === undefined) return undefined;
  const figure = /^\d+$/.test(header) ? Number(header) : undefined;
  // Date.parse accepts many bare numbers as dates.
  const date = /[a-z]/i.test(header) ? Date.parse(header) : NaN;
  const wait = figure === undefined ? date - now : figure > 1e9 ? figure * 1000 - now : figure * 1000;
  return Number.isNaN(wait) ? undefined : Math.min(Math.max(minWaitMs, mostMs), Math.max(minWaitMs, wait));
}
