import { createHash } from 'node:crypto';
import { open, stat } from 'node:fs/promises';
import { algorithmOf, hexOf, type Digest } from '../oci/digest.ts';
import { errorCode } from '../util/errors.ts';

const stepBytes = 4 * 1024 * 1024;

/**
 * Reads a stored file to its end. Resolves to what is wrong with it, or undefined. `pace` is told of every step, and waits
 * as long as the reading is to wait.
 */
export async function findDamage(
  path: string,
  { digest, size }: { digest: Digest; size: number },
  pace: (bytes: number) => Promise<void> | void,
): Promise<string | undefined> {
  let handle;
  try {
    handle = await open(path, 'r');
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return 'its file is missing';
    throw error;
  }
  try {
    const hash = createHash(algorithmOf(digest));
    const buffer = Buffer.allocUnsafe(Math.min(stepBytes, size + 1));
    let length = 0;
    for (;;) {
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, length);
      if (bytesRead === 0) break;
      hash.update(buffer.subarray(0, bytesRead));
      length += bytesRead;
      await pace(bytesRead);
    }
    // It may have been replaced while it was read.
    const now = await stat(path).catch(() => undefined);
    if (now?.ino !== (await handle.stat()).ino) return undefined;
    if (length !== size) return `its file has ${length} bytes, expected ${size}`;
    return hash.digest('hex') === hexOf(digest) ? undefined : 'its bytes do not hash to it';
  } catch (error) {
    // A sector that cannot be read is damage too.
    if (errorCode(error) === 'EIO') return 'its file cannot be read (EIO)';
    throw error;
  } finally {
    await handle.close();
  }
}
