import { z } from 'zod';
import { MirrorError } from '../util/errors.ts';

const forms = {
  tags: z.looseObject({ tags: z.array(z.string()).nullable() }),
  referrers: z.looseObject({ manifests: z.array(z.looseObject({ digest: z.string() })) }),
};

/**
 * Throws `upstream-invalid` for what is not a list of tags, or an index of referrers: else a portal's page or a cut
 * answer would be an empty list to clients.
 */
export function checkList(kind: 'tags' | 'referrers', bytes: Uint8Array, what: string): void {
  let json: unknown;
  try {
    json = JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8'));
  } catch {
    // Nor is it a list.
  }
  if (forms[kind].safeParse(json).success) return;
  throw new MirrorError('upstream-invalid', `${what}: the upstream sent no list of ${kind}`);
}

/**
 * The query of the page that comes next, by `Link` headers of the answer from `url` (RFC 8288). What leads to another
 * host or to something else is passed over: it is never followed, and of no use to clients.
 */
export function nextPage(headers: string | string[] | undefined, url: URL): string | null {
  for (const [, target = '', params = ''] of [headers ?? []]
    .flat()
    .flatMap((header) => [...header.matchAll(/<([^<>]*)>([^<]*)/g)])) {
    if (!/;\s*rel\s*=\s*"?(?:[\w-]+ )*next\b/i.test(params)) continue;
    const next = URL.parse(target, url);
    if (next?.hostname !== url.hostname || next.pathname !== url.pathname) continue;
    next.searchParams.delete('ns');
    return next.searchParams.toString();
  }
  return null;
}
