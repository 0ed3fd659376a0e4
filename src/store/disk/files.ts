import { constants } from 'node:fs';
import { open, readdir, readFile, stat, statfs, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { blobMediaType } from '../../oci/content.ts';
import { isDigest, type Digest } from '../../oci/digest.ts';
import { recognise, type Child } from '../../oci/manifest.ts';
import { blobsPath } from './layout.ts';

/** What is said of a file that is not there. */
export const missingFile = 'its file is missing';
/** What is said of what is a directory, a pipe or a device. */
export const notAFile = 'it is no regular file';

/** What the file system has left: bytes, and files; Infinity where it does not count these. */
export interface FreeSpace {
  readonly bytes: number;
  readonly files: number;
}

const maxManifestBytes = 8 * 1024 * 1024;

/** The blobs whose files are there. */
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

/** Opens a stored file to be read. What is no file at all is not waited for, as a named pipe is for somebody who writes. */
export function openStored(path: string): Promise<FileHandle> {
  return open(path, constants.O_RDONLY | constants.O_NONBLOCK);
}

/** What a file holds of which only its name is known. */
export async function contentOf(
  path: string,
  size: number,
): Promise<{ mediaType: string; children: readonly Child[] }> {
  const manifest = size <= maxManifestBytes ? recognise(await readFile(path)) : undefined;
  return manifest ?? { mediaType: blobMediaType, children: [] };
}

/** In bytes; 0 when there is no such file. */
export async function sizeOf(file: string): Promise<number> {
  return stat(file).then(
    ({ size }) => size,
    () => 0,
  );
}

/** Undefined: there is no such file. */
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
