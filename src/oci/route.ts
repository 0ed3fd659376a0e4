import { MirrorError } from '../util/errors.ts';
import { parseDigest, type Digest } from './digest.ts';
import { isTag } from './repo.ts';

/** What a request to the registry API is for. `name` is not yet checked: which grammar holds, the upstream decides. */
export type Route =
  | { readonly kind: 'ping' }
  | { readonly kind: 'manifest'; readonly name: string; readonly reference: Reference; readonly ns?: string }
  | { readonly kind: 'blob'; readonly name: string; readonly digest: Digest; readonly ns?: string };

export type Reference = { readonly tag: string } | { readonly digest: Digest };

const maxUrlLength = 4096;

/** The route of a raw request target. Throws the fault that the client is to see. */
export function parseRoute(method: string, target: string): Route {
  if (target.length > maxUrlLength)
    throw new MirrorError('request-invalid', 'request target: longer than 4096');
  const queryAt = target.indexOf('?');
  const path = decodePath(queryAt < 0 ? target : target.slice(0, queryAt));
  if (path !== '/v2' && !path.startsWith('/v2/')) throw unknownRoute(path);
  if (method !== 'GET' && method !== 'HEAD') {
    throw new MirrorError(
      'method-unsupported',
      `${method} ${path}: this is a read-only mirror, push to the registry itself`,
    );
  }
  if (path === '/v2' || path === '/v2/') return { kind: 'ping' };

  // From the right: `foo/manifests/bar` is a legal name.
  const slash = path.lastIndexOf('/');
  const last = path.slice(slash + 1);
  const before = path.slice('/v2/'.length, slash);
  const ns = queryAt < 0 ? undefined : namespaceOf(target.slice(queryAt + 1));
  if (before.endsWith('/manifests')) {
    const name = before.slice(0, -'/manifests'.length);
    return { kind: 'manifest', name, reference: parseReference(last), ...ns };
  }
  if (before.endsWith('/blobs')) {
    return { kind: 'blob', name: before.slice(0, -'/blobs'.length), digest: parseDigest(last), ...ns };
  }
  throw unknownRoute(path);
}

/** What cannot be a tag is a tag that does not exist (OCI conformance asks for 404, not 400). */
function parseReference(text: string): Reference {
  if (text.includes(':')) return { digest: parseDigest(text) };
  if (isTag(text)) return { tag: text };
  throw new MirrorError('manifest-unknown', `tag ${JSON.stringify(text.slice(0, 150))}: not a legal tag`);
}

/** Decoded once. No legal name, tag or digest has a slash, a backslash, a NUL or a percent sign in a component. */
function decodePath(raw: string): string {
  if (!raw.includes('%')) return raw;
  if (/%(?:2f|5c|00|25)/i.test(raw)) throw unknownRoute(raw);
  try {
    return decodeURIComponent(raw);
  } catch {
    throw unknownRoute(raw);
  }
}

function namespaceOf(query: string): { ns: string } | undefined {
  const values = new URLSearchParams(query).getAll('ns');
  if (values.length > 1) throw new MirrorError('request-invalid', 'query: ns is given more than once');
  return values[0] === undefined ? undefined : { ns: values[0] };
}

function unknownRoute(path: string): MirrorError {
  return new MirrorError(
    'route-unknown',
    `path ${JSON.stringify(path.slice(0, 150))}: not part of the pull API`,
  );
}
