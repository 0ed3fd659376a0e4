import { MirrorError } from '../util/errors.ts';
import { parseJson } from './json.ts';

/**
 * Throws `upstream-invalid` unless the body is a tag list or an index of referrers: clients would take a login page or a
 * truncated body for an empty list. Registries in Go write an empty list as null.
 */
export function checkList(kind: 'tags' | 'referrers', bytes: Uint8Array, what: string): void {
  let json: unknown;
  try {
    json = parseJson(bytes);
  } catch {
    // Reported below.
  }
  const entries = (json as Record<string, unknown> | null | undefined)?.[
    kind === 'tags' ? 'tags' : 'manifests'
  ];
  const isEntry = kind === 'tags' ? isString : hasDigest;
  if (entries === null || (Array.isArray(entries) && entries.every(isEntry))) return;
  throw new MirrorError('upstream-invalid', `${what}: the upstream's answer is not a list of ${kind}`);
}

function isString(entry: unknown): boolean {
  return typeof entry === 'string';
}

function hasDigest(entry: unknown): boolean {
  return typeof (entry as { digest?: unknown } | null)?.digest === 'string';
}

/**
 * The query of the next page, from the `Link` headers of the answer from `url` (RFC 8288). Accepts only links to the same
 * host and kind of list; their path may be rewritten by a proxy and is not used. Null if there is no such link.
 */
export function nextPage(headers: string | string[] | undefined, url: URL): string | null {
  const list = url.pathname.split('/').slice(-2).join('/');
  for (const header of [headers ?? []].flat()) {
    for (const [, target = '', params = ''] of header.matchAll(/<([^<>]*)>((?:[^<",]|"[^"]*")*)/g)) {
      if (!/;\s*rel\s*=\s*["']?(?:[\w-]+ )*next\b/i.test(params)) continue;
      const next = URL.parse(target, url);
      if (next?.hostname !== url.hostname || !next.pathname.replace(/\/$/, '').endsWith(`/${list}`)) continue;
      next.searchParams.delete('ns');
      // ghcr.io adds n=0 if the client has not set n.
      if (next.searchParams.get('n') === '0') next.searchParams.delete('n');
      return next.searchParams.toString();
    }
  }
  return null;
}
