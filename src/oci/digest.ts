import { createHash } from 'node:crypto';
import { MirrorError } from '../util/errors.ts';

declare const brand: unique symbol;
/** A validated `sha256:<64 hex>` or `sha512:<128 hex>`; safe in file names and headers. */
export type Digest = string & { readonly [brand]: 'digest' };

export type Algorithm = 'sha256' | 'sha512';

const form = /^(?:sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$/;

export function isDigest(text: string): text is Digest {
  return form.test(text);
}

/** Throws `digest-invalid`. */
export function parseDigest(text: string): Digest {
  if (isDigest(text)) return text;
  throw new MirrorError(
    'digest-invalid',
    `digest ${JSON.stringify(text.slice(0, 150))}: expected sha256: and 64, or sha512: and 128, lower-case hex digits`,
  );
}

export function algorithmOf(digest: Digest): Algorithm {
  return digest.startsWith('sha256:') ? 'sha256' : 'sha512';
}

export function hexOf(digest: Digest): string {
  return digest.slice(7);
}

export function digestOf(bytes: Uint8Array, algorithm: Algorithm = 'sha256'): Digest {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}` as Digest;
}

/** For small content: large content is hashed on a worker thread. */
export function hashesTo(bytes: Uint8Array, digest: Digest): boolean {
  return digestOf(bytes, algorithmOf(digest)) === digest;
}
