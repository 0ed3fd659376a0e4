import { MirrorError } from '../util/errors.ts';
import { parseJson } from './json.ts';

/**
 * Throws `upstream-invalid` for what is not a list of tags, or an index of referrers: else a portal's page or a cut
 * answer would be an empty list to clients. Go's registries write an empty one as null.
 */
export function checkList(kind: 'tags' | 'referrers', bytes: Uint8Array, what: string): void {
  let json: unknown;
  try {
    json = parseJson(bytes);
  } catch {
    // Nor is it a list.
  }
  const entries = (json as Record<string, unknown> | null | undefined)?.[
    kind === 'tags' ? 'tags' : 'manifests'
  ];
  const isEntry = kind === 'tags' ? isText : hasDigest;
  if (entries === null || (Array.isArray(entries) && entries.every(isEntry))) return;
  throw new MirrorError('upstream-invalid', `${what}: the upstream sent no list of ${kind}`);
}

function isText(entry: unknown): boolean {
  return typeof entry === 'string';
}

function hasDigest(entry: unknown): boolean {
  return typeof (entry as { digest?: unknown } | null)?.digest === 'string';
}

/**
 * The query of the page that comes next, by `Link` headers of the answer from `url` (RFC 8288). It is taken from a link
 * to the same host and the same kind of list, whatever path a proxy in front has made of it: we put it behind a path of
 * our own. What leads elsewhere is passed over, and never followed.
 */
export function nextPage(headers: string | string[] | undefined, url: URL): string | null {
  const list = url.pathname.split('/').slice(-2).join('/');
  for (const header of [headers ?? []].flat()) {
    for (const [, target = '', params = ''] of header.matchAll(/<([^<>]*)>((?:[^<",]|"[^"]*")*)/g)) {
      if (!/;\s*rel\s*=\s*["']?(?:[\w-]+ )*next\b/i.test(params)) continue;
      const next = URL.parse(target, url);
      if (next?.hostname !== url.hostname || !next.pathname.replace(/\/$/, '').endsWith(`/${list}`)) continue;
      next.searchParams.delete('ns');
      // Where the client has named none, ghcr.io says so.
      if (next.searchParams.get('n') === '0') next.searchParams.delete('n');
      return next.searchParams.toString();
    }
  }
  return null;
}
