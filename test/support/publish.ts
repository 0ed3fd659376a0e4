import { createHash } from 'node:crypto';
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { Digest } from '../../src/oci/digest.ts';
import { ask } from './http.ts';
import { blobOf, indexOf, manifestOf, ociManifest, type Blob, type Image, type Manifest } from './images.ts';
import { run } from './programs.ts';

/** A runnable multi-arch image that prints a message. */
export async function realImage(
  directory: string,
  architectures: readonly string[],
): Promise<{ index: Manifest; images: readonly Image[] }> {
  const images = [];
  for (const architecture of architectures) {
    const root = join(directory, `root-${architecture}`);
    await mkdir(join(root, 'bin'), { recursive: true });
    await cp('/bin/busybox', join(root, 'bin/busybox'));
    await writeFile(join(root, 'about'), `${architecture}\n`);
    await run('tar', ['-C', root, '-cf', `${root}.tar`, '.']);
    images.push(imageOfTar(await readFile(`${root}.tar`), architecture));
  }
  const plain = indexOf(images);
  const json = JSON.parse(plain.bytes.toString()) as { manifests: object[] };
  const manifests = json.manifests.map((each, i) => ({
    ...each,
    platform: { os: 'linux', architecture: architectures[i] },
  }));
  return { index: manifestOf({ ...json, manifests }, plain.mediaType), images };
}

function imageOfTar(tar: Buffer, architecture: string): Image {
  const layer = blobOf(gzipSync(tar));
  const diffId = `sha256:${createHash('sha256').update(tar).digest('hex')}`;
  const config = blobOf(
    JSON.stringify({
      architecture,
      os: 'linux',
      config: { Cmd: ['/bin/busybox', 'cat', '/about'] },
      rootfs: { type: 'layers', diff_ids: [diffId] },
    }),
  );
  const descriptor = ({ digest, bytes }: Blob, mediaType: string) => ({
    mediaType,
    digest,
    size: bytes.length,
  });
  const manifest = manifestOf(
    {
      schemaVersion: 2,
      mediaType: ociManifest,
      config: descriptor(config, 'application/vnd.oci.image.config.v1+json'),
      layers: [descriptor(layer, 'application/vnd.oci.image.layer.v1.tar+gzip')],
    },
    ociManifest,
  );
  return { manifest, config, layers: [layer] };
}

/** Pushes to an independent registry. */
export async function push(
  registry: string,
  repo: string,
  tag: string,
  { index, images }: { index: Manifest; images: readonly Image[] },
  authorization?: string,
): Promise<void> {
  const headers = { ...(authorization !== undefined && { authorization }) };
  const put = async (path: string, type: string, bytes: Buffer): Promise<void> => {
    const options = { method: 'PUT', headers: { ...headers, 'content-type': type }, body: bytes };
    const { status, body } = await ask(`${registry}/v2/${repo}/${path}`, options);
    if (status !== 201) throw new Error(`PUT ${path}: ${status} ${body.toString()}`);
  };
  const putBlob = async ({ digest, bytes }: { digest: Digest; bytes: Buffer }): Promise<void> => {
    const start = await ask(`${registry}/v2/${repo}/blobs/uploads/`, { method: 'POST', headers });
    const upload = new URL(start.headers.location ?? '', registry);
    upload.searchParams.set('digest', digest);
    await put(`blobs${upload.href.split('/blobs')[1] ?? ''}`, 'application/octet-stream', bytes);
  };
  for (const { manifest, config, layers } of images) {
    for (const blob of [config, ...layers]) await putBlob(blob);
    await put(`manifests/${manifest.digest}`, manifest.mediaType, manifest.bytes);
  }
  await put(`manifests/${tag}`, index.mediaType, index.bytes);
}
