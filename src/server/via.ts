import type { IncomingMessage } from 'node:http';
import { MirrorError } from '../util/errors.ts';

const form = /^layercache-[0-9a-f]{16}$/;
/** More mirrors than anybody has one behind the other. */
const maxMirrors = 16;
const none: readonly string[] = [];

/**
 * The mirrors that a request has come through, by the pseudonyms in its Via (RFC 9110 section 7.6.3): these alone of a client's
 * headers go upstream. Throws `loop` when this one is among them.
 */
export function mirrorsOf(req: IncomingMessage, pseudonym: string): readonly string[] {
  const { via } = req.headers;
  if (via === undefined) return none;
  const mirrors = via.split(',').flatMap((entry) => {
    const [, by = ''] = entry.trim().split(/\s+/);
    return form.test(by) ? [by] : [];
  });
  if (mirrors.includes(pseudonym) || mirrors.length > maxMirrors)
    throw new MirrorError(
      'loop',
      'this request has come through this mirror already: its upstreams lead back to it',
    );
  return mirrors;
}
