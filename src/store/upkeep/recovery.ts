import { readdir, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { Content, Descriptor } from '../../oci/content.ts';
import { isDigest, type Digest } from '../../oci/digest.ts';
import { errorCode } from '../../util/errors.ts';

/** The part of the store that recovery needs. */
export interface Recoverable {
  digestsWithPrefix(prefix: string): Digest[];
  describe(digest: Digest): Descriptor | undefined;
  open(digest: Digest): Content | undefined;
}

/** File systems have coarse timestamps. */
const timeSlackMs = 1000;

/**
 * Deletes files without a row and rows without a file, after a crash. Runs while requests are served: only files older
 * than `startedAt` (ms since the epoch) are deleted. Resolves to the number of deleted files; the store counts the
 * rows.
 */
export async function reconcile(
  blobsDirectory: string,
  store: Recoverable,
  startedAt: number,
  signal: AbortSignal,
): Promise<number> {
  let strayFiles = 0;
  for (const algorithm of ['sha256', 'sha512']) {
    for (let prefix = 0; prefix < 256 && !signal.aborted; prefix++) {
      const hex = prefix.toString(16).padStart(2, '0');
      const directory = join(blobsDirectory, algorithm, hex);
      const digests = store.digestsWithPrefix(`${algorithm}:${hex}`);
      const files = new Set(await filesIn(directory));
      for (const digest of digests)
        if (!files.has(digest.slice(algorithm.length + 1))) await dropIfLost(store, digest);
      for (const file of files) {
        const digest = `${algorithm}:${file}`;
        if (isDigest(digest) && store.describe(digest)) continue;
        if (await removeIfOlder(join(directory, file), startedAt - timeSlackMs)) strayFiles += 1;
      }
    }
  }
  return strayFiles;
}

/** Opening detects the missing file, upon which the store drops the row. */
async function dropIfLost(store: Recoverable, digest: Digest): Promise<void> {
  const content = store.open(digest);
  try {
    await content?.prepare();
  } catch {
    // Reported by the lease.
  } finally {
    content?.release();
  }
}

async function filesIn(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return [];
    throw error;
  }
}

async function removeIfOlder(path: string, time: number): Promise<boolean> {
  try {
    if ((await stat(path)).ctimeMs >= time) return false;
    await unlink(path);
    return true;
  } catch (error) {
    // Deleted concurrently.
    if (errorCode(error) === 'ENOENT') return false;
    throw error;
  }
}
