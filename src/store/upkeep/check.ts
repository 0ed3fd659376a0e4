import { stat } from 'node:fs/promises';
import type { Digest } from '../../oci/digest.ts';
import { errorCode } from '../../util/errors.ts';
import { missingFile, notAFile, openStored } from '../disk/files.ts';
import type { Verifier } from '../ingest/verifier.ts';

const stepBytes = 4 * 1024 * 1024;

/**
 * Verifies a stored file on the verifier's thread. Resolves to what is wrong with it, or undefined. `pace`: awaited
 * after each step, with the number of bytes read.
 */
export async function findDamage(
  verifier: Verifier,
  path: string,
  { digest, size }: { digest: Digest; size: number },
  pace: (bytes: number) => Promise<void> | void,
): Promise<string | undefined> {
  let handle;
  try {
    handle = await openStored(path);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return missingFile;
    if (errorCode(error) === 'ENXIO') return notAFile;
    throw error;
  }
  const verification = verifier.start(digest, handle.fd);
  try {
    const entry = await handle.stat();
    if (!entry.isFile()) return notAFile;
    const { size: length, ino } = entry;
    for (let at = 0; at < Math.min(length, size);) {
      const step = Math.min(stepBytes, length - at);
      at += step;
      verification.advance(at);
      await verification.reached();
      await pace(step);
    }
    const isRight = length === size && (await verification.matches());
    // The file may have been replaced meanwhile.
    const now = await stat(path).catch(() => undefined);
    if (isRight || now?.ino !== ino) return undefined;
    return length === size
      ? 'its bytes do not match the digest'
      : `its file has ${length} bytes, expected ${size}`;
  } catch (error) {
    // An unreadable sector is damage too.
    if (errorCode(error) === 'EIO') return 'its file cannot be read (EIO)';
    throw error;
  } finally {
    await verification.end().catch(() => undefined);
    await handle.close();
  }
}
