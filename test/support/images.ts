import { createHash, randomBytes } from 'node:crypto';
import { digestOf, type Digest } from '../../src/oci/digest.ts';

export interface Blob {
  readonly digest: Digest;
  readonly bytes: Buffer;
}

export interface Manifest extends Blob {
  readonly mediaType: string;
}

export interface Image {
  readonly manifest: Manifest;
  readonly config: Blob;
  readonly layers: readonly Blob[];
}

export const ociManifest = 'application/vnd.oci.image.manifest.v1+json';
export const ociIndex = 'application/vnd.oci.image.index.v1+json';

export function blobOf(bytes: Buffer | string): Blob {
  const buffer = Buffer.from(bytes);
  return { bytes: buffer, digest: digestOf(buffer) };
}

/** A blob of random bytes. */
export function randomBlob(size: number): Blob {
  return blobOf(randomBytes(size));
}

export const blockSize = 4096;

/** A large blob of repeated blocks, each with its number written into it: cheap, and no two blocks are equal. */
export function largeBlob(size: number, block = randomBytes(blockSize)): Blob {
  const bytes = Buffer.alloc(size, block);
  for (let at = 0; at + 4 <= size; at += blockSize) bytes.writeUInt32LE(at / blockSize, at);
  return { bytes, digest: `sha256:${createHash('sha256').update(bytes).digest('hex')}` as Digest };
}

export function manifestOf(json: object, mediaType: string): Manifest {
  return { ...blobOf(JSON.stringify(json, null, 3) + '\n'), mediaType };
}

function descriptor({ digest, bytes }: Blob, mediaType: string): object {
  return { mediaType, digest, size: bytes.length };
}

export function imageOf(layers: readonly Blob[], config = randomBlob(500)): Image {
  const manifest = manifestOf(
    {
      schemaVersion: 2,
      mediaType: ociManifest,
      config: descriptor(config, 'application/vnd.oci.image.config.v1+json'),
      layers: layers.map((layer) => descriptor(layer, 'application/vnd.oci.image.layer.v1.tar+gzip')),
    },
    ociManifest,
  );
  return { manifest, config, layers };
}

export function indexOf(images: readonly Image[]): Manifest {
  const manifests = images.map(({ manifest }) => descriptor(manifest, manifest.mediaType));
  return manifestOf({ schemaVersion: 2, mediaType: ociIndex, manifests }, ociIndex);
}
