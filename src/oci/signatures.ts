import { algorithmOf, hexOf, type Digest } from './digest.ts';

const endings = ['', '.sig', '.att', '.sbom'];

/**
 * The tags under which cosign and the referrers fallback keep what belongs to a manifest: of a digest the first 64 hex digits
 * (OCI distribution-spec, "Referrers Tag Schema").
 */
export function signatureTags(digest: Digest): string[] {
  const base = `${algorithmOf(digest)}-${hexOf(digest).slice(0, 64)}`;
  return endings.map((ending) => base + ending);
}

/** How the digest begins to which such a tag belongs; all of it, if that is a sha256. Undefined for other tags. */
export function subjectOf(tag: string): string | undefined {
  const [, algorithm, hex] = /^(sha256|sha512)-([0-9a-f]{64})(?:\.(?:sig|att|sbom))?$/.exec(tag) ?? [];
  return algorithm === undefined || hex === undefined ? undefined : `${algorithm}:${hex}`;
}
