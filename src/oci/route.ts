import { MirrorError } from '../util/errors.ts';
import { parseDigest, type Digest } from './digest.ts';
import { isTag } from './repo.ts';

/**
 * A parsed request to the registry API. `name` is not validated yet: first the upstream is chosen by it.
 */
export type Route = Place &
  (
    | { readonly kind: 'ping' }
    | { readonly kind: 'manifest'; readonly name: string; readonly reference: Reference }
    | { readonly kind: 'blob'; readonly name: string; readonly digest: Digest }
    | { readonly kind: 'tags'; readonly name: string }
    | { readonly kind: 'referrers'; readonly name: string; readonly digest: Digest }
  );

/** The parts of the request target beside the repository name. */
export interface Place {
  /** Decoded, without query; used in Link headers. */
  readonly path: string;
  /** The component before `/v2/`: `ghcr.io` in `/ghcr.io/v2/…`. */
  readonly prefix: string | undefined;
  /** The `ns` parameter: the registry, as named by containerd and others. */
  readonly ns: string | undefined;
  /** The other parameters. */
  readonly query: URLSearchParams;
}

export type Reference = { readonly tag: string } | { readonly digest: Digest };

const maxUrlLength = 4096;
const noQuery = new URLSearchParams();

/**
 * Host and path of a target in absolute form; its host overrides the Host header (RFC 9112 section 3.2.2). Undefined for
 * other forms.
 */
export function splitAbsolute(target: string): { host: string; target: string } | undefined {
  // Fast path.
  if (target.startsWith('/')) return undefined;
  const [, host, rest] = /^https?:\/\/([^/?#@]+)(.*)$/is.exec(target) ?? [];
  if (host === undefined || rest === undefined) return undefined;
  return { host, target: rest.startsWith('/') ? rest : `/${rest}` };
}

/** Parses a raw request target. Throws the fault for the client. */
export function parseRoute(method: string, target: string): Route {
  if (target.length > maxUrlLength)
    throw new MirrorError('request-invalid', `request target: longer than ${maxUrlLength} characters`);
  const queryAt = target.indexOf('?');
  const path = decodePath(queryAt < 0 ? target : target.slice(0, queryAt));
  const match = /^(?:\/([^/]+))??\/v2(?:\/(.*))?$/s.exec(path);
  if (!match) throw unknownRoute(path);
  const [, prefix, below] = match;
  if (method !== 'GET' && method !== 'HEAD') {
    throw new MirrorError(
      'method-unsupported',
      `${method} ${path}: this is a read-only mirror, push to the registry itself`,
    );
  }
  const query = queryAt < 0 ? noQuery : new URLSearchParams(target.slice(queryAt + 1));
  const place = { path, prefix, ns: queryAt < 0 ? undefined : takeNamespace(query), query };
  if (!below) return { ...place, kind: 'ping' };

  // From the right: `foo/manifests/bar` is a legal name.
  const [, name = '', kind, last = ''] =
    /^(?:(.*)\/)?(manifests|blobs|referrers|tags)\/([^/]*)$/s.exec(below) ?? [];
  if (kind === 'manifests') return { ...place, kind: 'manifest', name, reference: parseReference(last) };
  if (kind === 'blobs') return { ...place, kind: 'blob', name, digest: parseDigest(last) };
  if (kind === 'referrers') return { ...place, kind: 'referrers', name, digest: parseDigest(last) };
  if (kind === 'tags' && last === 'list') return { ...place, kind: 'tags', name };
  throw unknownRoute(path);
}

/** An invalid tag is an unknown tag: the OCI conformance suite expects 404, not 400. */
function parseReference(text: string): Reference {
  if (text.includes(':')) return { digest: parseDigest(text) };
  if (isTag(text)) return { tag: text };
  throw new MirrorError('manifest-unknown', `tag ${JSON.stringify(text.slice(0, 150))}: not a valid tag`);
}

/** Decodes once. Refuses encoded slash, backslash, NUL and percent: no valid name, tag or digest has them in a component. */
function decodePath(raw: string): string {
  if (!raw.includes('%')) return raw;
  if (/%(?:2f|5c|00|25)/i.test(raw)) throw unknownRoute(raw);
  try {
    return decodeURIComponent(raw);
  } catch {
    throw unknownRoute(raw);
  }
}

function takeNamespace(query: URLSearchParams): string | undefined {
  const values = query.getAll('ns');
  if (values.length > 1) throw new MirrorError('request-invalid', 'query: ns is given more than once');
  query.delete('ns');
  return values[0];
}

function unknownRoute(path: string): MirrorError {
  return new MirrorError(
    'route-unknown',
    `path ${JSON.stringify(path.slice(0, 150))}: not part of the pull API`,
  );
}
