import type { IncomingMessage } from 'node:http';
import { MirrorError } from '../util/errors.ts';

const pseudonymForm = /^layercache-[0-9a-f]{16}$/;
/** Longest chain of mirrors; longer is taken for a loop. */
const maxMirrors = 16;
const none: readonly string[] = [];

/**
 * Pseudonyms of the mirrors in the request's Via header (RFC 9110 section 7.6.3), the only client header that is passed
 * upstream. Throws `loop` if this mirror is among them.
 */
export function mirrorsOf(req: IncomingMessage, pseudonym: string): readonly string[] {
  const { via } = req.headers;
  if (via === undefined) return none;
  const mirrors = via.split(',').flatMap((entry) => {
    const [, by = ''] = entry.trim().split(/\s+/);
    return pseudonymForm.test(by) ? [by] : [];
  });
  if (mirrors.includes(pseudonym) || mirrors.length > maxMirrors)
    throw new MirrorError(
      'loop',
      'this request has already passed through this mirror: one of its upstreams leads back to it',
    );
  return mirrors;
}
