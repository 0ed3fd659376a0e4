import { stat, statfs } from 'node:fs/promises';
import type { Logger } from '../util/log.ts';
import { filesOf } from './files.ts';
import { catalogPath } from './layout.ts';

/** A catalog that is gone beside blobs that are there would be taken for one that knows of none. */
export async function refuseToBeginAnew(root: string): Promise<void> {
  const size = await stat(catalogPath(root)).then(
    (entry) => entry.size,
    () => 0,
  );
  if (size > 0 || (await filesOf(root).next()).done) return;
  throw new Error(
    `${catalogPath(root)} is missing or empty, though there are blobs: "layercache store rebuild" makes a new one from its backup and the files`,
  );
}

/** By the types that Linux gives them (statfs(2)). */
const networkFileSystems: Readonly<Record<number, string>> = {
  0x6969: 'NFS',
  0x517b: 'SMB',
  0xff534d42: 'CIFS',
  0xfe534d42: 'SMB2',
  0x01021997: '9P',
  0x00c36400: 'Ceph',
};

/** Locks, renames and SQLite's shared memory are not what they should be there. */
export async function warnOfNetwork(path: string, log: Logger): Promise<void> {
  const { type } = await statfs(path);
  const name = networkFileSystems[type];
  if (name !== undefined)
    log.warn({ path, fileSystem: name }, 'the data directory is on a network file system: use a local disk');
}
