import { readdir, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { Content, Descriptor } from '../../oci/content.ts';
import { isDigest, type Digest } from '../../oci/digest.ts';
import { errorCode } from '../../util/errors.ts';

/** What recovery asks of the store. */
export interface Recoverable {
  digestsWithPrefix(prefix: string): Digest[];
  describe(digest: Digest): Descriptor | undefined;
  open(digest: Digest): Content | undefined;
}

/** File systems keep times coarsely. */
const timeSlackMs = 1000;

/**
 * Makes directory and catalog agree after a crash: a file without a row goes, a row without a file too. It runs behind
 * the first answers, so files are looked at only when they are older than `startedAt` (ms since the epoch): newer ones
 * are being worked on. Resolves to how many files went; the rows are counted by whoever finds that a file is missing.
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

/** Opening is what finds a file missing, and then drops the row. */
async function dropIfLost(store: Recoverable, digest: Digest): Promise<void> {
  const content = store.open(digest);
  try {
    await content?.prepare();
  } catch {
    // That was it.
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
    // Somebody else has just removed it.
    if (errorCode(error) === 'ENOENT') return false;
    throw error;
  }
}
