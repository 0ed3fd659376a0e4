import { z } from 'zod';
import { MirrorError } from '../util/errors.ts';
import { isDigest, type Digest } from './digest.ts';
import { parseJson } from './json.ts';

/** A part that a manifest names. Foreign parts are fetched from elsewhere, by the client alone. */
export interface Child {
  readonly digest: Digest;
  readonly size: number;
  readonly kind: 'manifest' | 'config' | 'layer';
  readonly foreign: boolean;
}

export const ociIndex = 'application/vnd.oci.image.index.v1+json';

const indexTypes = [ociIndex, 'application/vnd.docker.distribution.manifest.list.v2+json'];
const manifestTypes = [
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.v2+json',
];

/** Always asked for in full: a tag must not change its digest with what a client happens to accept. */
export const acceptManifests = [...manifestTypes, ...indexTypes, '*/*'].join(', ');

const descriptor = z.object({
  digest: z.string(),
  size: z.number().int().nonnegative(),
  mediaType: z.string().optional(),
  urls: z.array(z.string()).optional(),
});

const manifestBody = z.object({
  schemaVersion: z.literal(2).optional(),
  mediaType: z.string().optional(),
  manifests: z.array(descriptor).optional(),
  config: descriptor.optional(),
  layers: z.array(descriptor).optional(),
});

/** `type/subtype` without parameters, in the characters that a header may carry; undefined for anything else. */
export function bareMediaType(header: string | undefined): string | undefined {
  const type = header?.split(';', 1)[0]?.trim().toLowerCase();
  return type !== undefined && type.length <= 255 && /^[\w.+-]+\/[\w.+-]+$/.test(type) ? type : undefined;
}

/**
 * The children of a manifest's exact bytes. Throws `upstream-invalid` when the body is no JSON object, or says another
 * type than the header did, or could be read as two types (CVE-2021-41190): none of these may enter the store.
 */
export function parseManifest(bytes: Uint8Array, mediaType: string, what: string): Child[] {
  const refuse = (why: string, cause?: unknown): never => {
    throw new MirrorError('upstream-invalid', `${what}: ${why}`, { cause });
  };
  if (mediaType === 'text/html') refuse('the upstream sent a web page');
  refuseSchema1(mediaType, what);
  let json: unknown;
  try {
    json = parseJson(bytes);
  } catch (cause) {
    refuse('the manifest is not JSON', cause);
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json) || Object.keys(json).length === 0)
    refuse('the manifest is no JSON object');
  if (!indexTypes.includes(mediaType) && !manifestTypes.includes(mediaType)) return [];
  const parsed = manifestBody.safeParse(json);
  if (!parsed.success) return refuse('the manifest has not the form of one', parsed.error);
  const { mediaType: said, manifests, config, layers } = parsed.data;
  if (said !== undefined && said !== mediaType) {
    refuse(`the manifest says ${JSON.stringify(said)}, its Content-Type says ${JSON.stringify(mediaType)}`);
  }
  const image = config !== undefined || layers !== undefined;
  if (manifests && image) refuse('the manifest has both manifests and layers');
  if (indexTypes.includes(mediaType) && (image || !manifests)) refuse('the index has no manifests');
  if (manifestTypes.includes(mediaType) && !(config && layers))
    refuse('the manifest has no config or no layers');

  const children: Child[] = [];
  const add = (kind: Child['kind'], parts: z.infer<typeof descriptor>[]): void => {
    for (const { digest, size, mediaType: type, urls } of parts) {
      if (!isDigest(digest)) continue;
      const foreign = (urls?.length ?? 0) > 0 || /\.(?:foreign|nondistributable)\./.test(type ?? '');
      children.push({ digest, size, kind, foreign });
    }
  };
  add('manifest', manifests ?? []);
  add('config', config ? [config] : []);
  add('layer', layers ?? []);
  return children;
}

/** Throws `upstream-invalid`: its digest is not that of its bytes, and no client of today reads it. */
export function refuseSchema1(mediaType: string, what: string): void {
  if (!/^application\/vnd\.docker\.distribution\.manifest\.v1\+/.test(mediaType)) return;
  const why = 'schema 1 manifests are not supported: push the image again with a current client';
  throw new MirrorError('upstream-invalid', `${what}: ${why}`);
}

/** Bytes of which nobody has said what they are: a manifest, if they read as one. */
export function recognise(bytes: Uint8Array): { mediaType: string; children: Child[] } | undefined {
  // Layers are compressed: nearly all of them are told apart by their first byte.
  if (bytes[0] !== 0x7b) return undefined;
  let json: unknown;
  try {
    json = parseJson(bytes);
  } catch {
    return undefined;
  }
  const { data } = manifestBody.safeParse(json);
  if (!data) return undefined;
  const types = data.manifests ? indexTypes : data.config && data.layers ? manifestTypes : [];
  const mediaType = types.find((type) => type === (data.mediaType ?? types[0]));
  if (mediaType === undefined) return undefined;
  try {
    return { mediaType, children: parseManifest(bytes, mediaType, 'a manifest') };
  } catch {
    return undefined;
  }
}
