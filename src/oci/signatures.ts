import { algorithmOf, hexOf, type Digest } from './digest.ts';

const endings = ['', '.sig', '.att', '.sbom'];

/** The tags under which cosign and the referrers fallback keep what belongs to a manifest. */
export function signatureTags(digest: Digest): string[] {
  const base = `${algorithmOf(digest)}-${hexOf(digest).slice(0, 64)}`;
  return endings.map((ending) => base + ending);
}

export function isTagOfSignature(tag: string): boolean {
  return /^sha(?:256|512)-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?$/.test(tag);
}
