import type { Digest } from '../oci/digest.ts';
import { acceptManifests, ociIndex } from '../oci/manifest.ts';
import type { ByteRange } from '../oci/range.ts';
import type { Repo } from '../oci/repo.ts';
import type { Call } from './http/transport.ts';

/** A request about a repo, before account and URL are chosen. */
export type RepoRequest = Omit<Call, 'url' | 'redirected'> & { readonly repo: Repo; readonly path: string };

/** The subject of a list: the tags of a repo, or the referrers of a manifest. */
export type ListOf = { readonly kind: 'tags' } | { readonly kind: 'referrers'; readonly digest: Digest };

export function manifestRequest(
  method: 'GET' | 'HEAD',
  repo: Repo,
  reference: string,
  signal: AbortSignal,
): RepoRequest {
  return {
    method,
    repo,
    kind: 'manifest',
    path: `/v2/${repo.name}/manifests/${reference}`,
    what: `${method} ${repo.key} manifest ${reference}`,
    headers: { accept: acceptManifests },
    signal,
  };
}

export function listRequest(
  repo: Repo,
  of: ListOf,
  query: URLSearchParams,
  signal: AbortSignal,
): RepoRequest {
  const page = of.kind === 'tags' ? 'tags/list' : `referrers/${of.digest}`;
  const search = query.size > 0 ? `?${query.toString()}` : '';
  return {
    method: 'GET',
    repo,
    kind: of.kind,
    path: `/v2/${repo.name}/${page}${search}`,
    what: `GET ${repo.key} ${page}`,
    headers: { accept: of.kind === 'tags' ? 'application/json' : ociIndex },
    signal,
  };
}

export function blobRequest(
  method: 'GET' | 'HEAD',
  repo: Repo,
  digest: Digest,
  signal: AbortSignal,
  range?: ByteRange,
): RepoRequest {
  return {
    method,
    repo,
    kind: 'blob',
    path: `/v2/${repo.name}/blobs/${digest}`,
    what: `${method} ${repo.key} blob ${digest}`,
    headers: range ? { range: `bytes=${range.start}-${range.end === Infinity ? '' : range.end - 1}` } : {},
    signal,
  };
}
