import { bareMediaType } from '../oci/manifest.ts';
import { parseContentRange, parseUnsatisfied, type ByteRange } from '../oci/range.ts';
import { MirrorError } from '../util/errors.ts';
import { parseChallenges } from './auth/challenge.ts';
import type { Body } from './http/body.ts';
import { one } from './http/headers.ts';
import { toFault, type Response } from './http/transport.ts';
import type { Ask } from './questions.ts';

/** Whether the upstream gives it to everybody: it knows us neither by credentials nor otherwise. */
export interface Provenance {
  readonly isPublic: boolean;
}

export interface UpstreamBlob extends Provenance {
  /** Of the whole blob; undefined when the upstream does not tell. */
  readonly size: number | undefined;
  /** What the body holds: from 0 where the upstream ignores ranges; its end is undefined with the size. */
  readonly start: number;
  readonly end: number | undefined;
  readonly body: Body;
}

/** An answer, and where it came from in the end. */
export type FinalResponse = Response & Provenance & { readonly url: URL };

export function tooLarge(what: string, limit: number): MirrorError {
  return new MirrorError('upstream-invalid', `${what}: more than ${limit} bytes: see fetch.maxManifestBytes`);
}

/** The size of the whole, if the answer tells it. */
export function sizeOf({ status, headers }: Response): number | undefined {
  const range = one(headers, 'content-range');
  if (status === 206) return parseContentRange(range)?.total;
  if (status === 416) return parseUnsatisfied(range);
  const length = Number(one(headers, 'content-length') ?? NaN);
  return Number.isSafeInteger(length) ? length : undefined;
}

/** The token is good, but not for this: a new one would not be either. */
export function isNotEnough({ headers }: Response): boolean {
  return parseChallenges(headers['www-authenticate']).some(
    ({ params }) => params['error'] === 'insufficient_scope',
  );
}

/** A portal or an error page in place of content. */
export function isWebPage({ headers }: Response): boolean {
  return bareMediaType(one(headers, 'content-type')) === 'text/html';
}

/** All bytes of a body; undefined: it is longer than `limit`. Throws a fault of the upstream when it breaks off. */
export function readAtMost(
  { what, signal }: Pick<Ask, 'what' | 'signal'>,
  body: Body,
  limit: number,
): Promise<Buffer | undefined> {
  return body.bytes(limit, signal).catch((cause: unknown) => {
    throw toFault(what, cause, signal);
  });
}

export function readBlob({ what }: Ask, response: FinalResponse, range: ByteRange | undefined): UpstreamBlob {
  const { status, headers, body, isPublic } = response;
  const size = sizeOf(response);
  const invalid = (sent: string): MirrorError => {
    body.discard();
    return new MirrorError('upstream-invalid', `${what}: the upstream sent ${sent}`);
  };
  if (isWebPage(response)) throw invalid('a web page');
  if (status === 200) return { size, start: 0, end: size, body, isPublic };
  if (status === 416) {
    // It may refuse a range only where there is nothing.
    if (!range || size === undefined || size > range.start) throw invalid('416');
    body.discard();
    return { size, start: size, end: size, body, isPublic };
  }
  const part = parseContentRange(one(headers, 'content-range'));
  if (!range || part?.range.start !== range.start || part.range.end > range.end)
    throw invalid('another range');
  return { size, ...part.range, body, isPublic };
}
