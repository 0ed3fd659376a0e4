import { algorithmOf, hexOf, isDigest, type Digest } from './digest.ts';

const endings = ['', '.sig', '.att', '.sbom'];

/** The tags under which cosign and the referrers fallback keep what belongs to a manifest. */
export function signatureTags(digest: Digest): string[] {
  const base = `${algorithmOf(digest)}-${hexOf(digest).slice(0, 64)}`;
  return endings.map((ending) => base + ending);
}

/** What such a tag belongs to. */
export function subjectOf(tag: string): Digest | undefined {
  const [, algorithm, hex] = /^(sha256|sha512)-([0-9a-f]{64})(?:\.(?:sig|att|sbom))?$/.exec(tag) ?? [];
  const digest = `${algorithm ?? ''}:${hex ?? ''}`;
  return isDigest(digest) ? digest : undefined;
}
