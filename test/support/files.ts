import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';

export interface FoundFile {
  readonly path: string;
  readonly size: number;
  /** Allocated bytes. */
  readonly diskBytes: number;
}

/** All files below a directory, except files deleted meanwhile. */
export async function filesBelow(root: string): Promise<FoundFile[]> {
  const names = await readdir(root, { recursive: true });
  const found = await Promise.all(
    names.map(async (name) => {
      const path = join(root, name);
      const entry = await stat(path).catch(() => undefined);
      return entry?.isFile() ? [{ path, size: entry.size, diskBytes: entry.blocks * 512 }] : [];
    }),
  );
  return found.flat();
}
