import { algorithmOf, hexOf, type Digest } from './digest.ts';

const endings = ['', '.sig', '.att', '.sbom'];

/**
 * Tags of a manifest's signatures, attestations, SBOMs and referrers, by cosign and the referrers tag schema (OCI
 * distribution-spec, "Referrers Tag Schema"): made of the first 64 hex digits of the digest.
 */
export function signatureTags(digest: Digest): string[] {
  const base = `${algorithmOf(digest)}-${hexOf(digest).slice(0, 64)}`;
  return endings.map((ending) => base + ending);
}

/** The digest that a signature tag belongs to; of a sha512 only its first 64 hex digits. Undefined for other tags. */
export function subjectOf(tag: string): string | undefined {
  const [, algorithm, hex] = /^(sha256|sha512)-([0-9a-f]{64})(?:\.(?:sig|att|sbom))?$/.exec(tag) ?? [];
  return algorithm === undefined || hex === undefined ? undefined : `${algorithm}:${hex}`;
}
