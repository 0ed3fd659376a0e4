import { constants } from 'node:fs';
import { open, readdir, readFile, stat, statfs, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { blobMediaType } from '../../oci/content.ts';
import { isDigest, type Digest } from '../../oci/digest.ts';
import { recognise, type Child } from '../../oci/manifest.ts';
import { blobsPath } from './layout.ts';

/** Reasons reported for a corrupt blob. */
export const missingFile = 'its file is missing';
export const notAFile = 'its file is not a regular file';

/** Free space of a file system: bytes, and inodes (Infinity if it does not count them). */
export interface FreeSpace {
  readonly bytes: number;
  readonly files: number;
}

const maxManifestBytes = 8 * 1024 * 1024;

/** Digests of all blob files. */
export async function* filesOf(root: string): AsyncGenerator<Digest> {
  for (const algorithm of ['sha256', 'sha512']) {
    const directory = join(blobsPath(root), algorithm);
    for (const prefix of await readdir(directory).catch(() => [])) {
      for (const hex of await readdir(join(directory, prefix)).catch(() => [])) {
        const digest = `${algorithm}:${hex}`;
        if (isDigest(digest)) yield digest;
      }
    }
  }
}

/** Opens a stored file for reading. Does not block if it is a named pipe. */
export function openStored(path: string): Promise<FileHandle> {
  return open(path, constants.O_RDONLY | constants.O_NONBLOCK);
}

/** Identifies a file of which only the digest is known: manifest or blob. */
export async function identifyFile(
  path: string,
  size: number,
): Promise<{ mediaType: string; children: readonly Child[] }> {
  const manifest = size <= maxManifestBytes ? recognise(await readFile(path)) : undefined;
  return manifest ?? { mediaType: blobMediaType, children: [] };
}

/** In bytes; 0 if absent. */
export async function sizeOf(file: string): Promise<number> {
  return stat(file).then(
    ({ size }) => size,
    () => 0,
  );
}

/** Undefined if absent. */
export async function inodeOf(file: string): Promise<number | undefined> {
  return stat(file).then(
    ({ ino }) => ino,
    () => undefined,
  );
}

export async function freeSpace(directory: string): Promise<FreeSpace> {
  const { bavail, bsize, files, ffree } = await statfs(directory);
  return { bytes: bavail * bsize, files: files === 0 ? Infinity : ffree };
}
