import { bareMediaType } from '../oci/manifest.ts';
import { parseContentRange, parseUnsatisfied, type ByteRange } from '../oci/range.ts';
import { MirrorError } from '../util/errors.ts';
import { parseChallenges } from './auth/challenge.ts';
import type { Body } from './http/body.ts';
import { headerOf } from './http/headers.ts';
import { type Response } from './http/transport.ts';
import type { RepoRequest } from './repo-requests.ts';

/**
 * Whether the upstream serves the content to everyone: the request carried no credentials, and the upstream is not
 * private.
 */
export interface Provenance {
  readonly isPublic: boolean;
}

export interface UpstreamBlob extends Provenance {
  /** Bytes of the whole blob; undefined if the upstream does not send it. */
  readonly size: number | undefined;
  /** The body's range: from 0 where the upstream ignores ranges; `end` is undefined if `size` is. */
  readonly start: number;
  readonly end: number | undefined;
  readonly body: Body;
}

/** A response, and the URL it came from after redirects. */
export type FinalResponse = Response & Provenance & { readonly url: URL };

export function tooLarge(what: string, limit: number): MirrorError {
  return new MirrorError('upstream-invalid', `${what}: larger than ${limit} bytes (fetch.maxManifestBytes)`);
}

/** Size of the whole content in bytes, if the response has it. */
export function sizeOf({ status, headers }: Response): number | undefined {
  const range = headerOf(headers, 'content-range');
  if (status === 206) return parseContentRange(range)?.total;
  if (status === 416) return parseUnsatisfied(range);
  const length = Number(headerOf(headers, 'content-length') ?? NaN);
  return Number.isSafeInteger(length) ? length : undefined;
}

/** The token is valid but lacks the scope; a new one would too. */
export function lacksScope({ headers }: Response): boolean {
  return parseChallenges(headers['www-authenticate']).some(
    ({ params }) => params['error'] === 'insufficient_scope',
  );
}

/** An HTML page, as from a captive portal, in place of content. */
export function isWebPage({ headers }: Response): boolean {
  return bareMediaType(headerOf(headers, 'content-type')) === 'text/html';
}

export function readBlob(
  { what }: RepoRequest,
  response: FinalResponse,
  range: ByteRange | undefined,
): UpstreamBlob {
  const { status, headers, body, isPublic } = response;
  const size = sizeOf(response);
  const invalid = (sent: string): MirrorError => {
    body.discard();
    return new MirrorError('upstream-invalid', `${what}: the upstream sent ${sent}`);
  };
  if (isWebPage(response)) throw invalid('a web page');
  if (status === 200) return { size, start: 0, end: size, body, isPublic };
  if (status === 416) {
    // 416 is valid only if the blob ends before the range.
    if (!range || size === undefined || size > range.start) throw invalid('416');
    body.discard();
    return { size, start: size, end: size, body, isPublic };
  }
  const part = parseContentRange(headerOf(headers, 'content-range'));
  if (!range || part?.range.start !== range.start || part.range.end > range.end)
    throw invalid('a range that was not requested');
  return { size, ...part.range, body, isPublic };
}
