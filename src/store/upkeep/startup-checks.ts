import { constants, existsSync } from 'node:fs';
import { access, mkdir, readdir, stat, statfs, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Logger } from '../../telemetry/log.ts';
import { errorCode } from '../../util/errors.ts';
import { formatSize } from '../../util/units.ts';
import { filesOf } from '../disk/files.ts';
import { blobsPath, catalogPath, ingestPath, quarantinePath } from '../disk/layout.ts';

/** Throws when blobs exist without a catalog: starting with an empty catalog would delete them. */
export async function refuseMissingCatalog(root: string): Promise<void> {
  const size = await stat(catalogPath(root)).then(
    (entry) => entry.size,
    () => 0,
  );
  if (size > 0 || (await filesOf(root).next()).done) return;
  throw new Error(
    `${catalogPath(root)} is missing or empty, but blobs exist: "layercache store rebuild" restores it from its backup and the files`,
  );
}

/** Kernel file systems by type (statfs(2)): they do not store files. */
const kernelFileSystems: Readonly<Record<number, string>> = {
  0x9fa0: 'proc',
  0x62656572: 'sysfs',
  0x1cd1: 'devpts',
  0x64626720: 'debugfs',
  0x74726163: 'tracefs',
  0x27e0eb: 'cgroup',
  0x63677270: 'cgroup2',
};

/**
 * Creates the data directory, and checks permissions. Throws errors with a remedy. A full or read-only disk is no
 * error here: it may recover.
 */
export async function prepareDirectory(root: string): Promise<void> {
  let parent = root;
  while (!existsSync(parent) && dirname(parent) !== parent) parent = dirname(parent);
  const { type } = await statfs(parent);
  const kernel = kernelFileSystems[type];
  // Creating a directory in one of these may never return.
  if (kernel !== undefined)
    throw new Error(
      `store.path: ${root} lies in a ${kernel} file system of the kernel: use a directory on a disk`,
    );
  try {
    await mkdir(blobsPath(root), { recursive: true });
    await mkdir(ingestPath(root), { recursive: true });
    for (const directory of [root, blobsPath(root), ingestPath(root)])
      await access(directory, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch (cause) {
    const code = errorCode(cause);
    if (code === 'ENOTDIR' || code === 'EEXIST')
      throw new Error(`store.path: ${root} is not a directory, or lies below a file: use another path`, {
        cause,
      });
    if (code !== 'EACCES' && code !== 'EPERM') throw cause;
    throw new Error(await explainOwner(root, parent), { cause });
  }
}

/** Whether the disk is full or not writable, which may pass. */
export function isDiskTrouble(error: unknown): boolean {
  for (let each = error; each instanceof Error; each = each.cause) {
    const code = errorCode(each) ?? '';
    if (['ENOSPC', 'EROFS', 'EDQUOT', 'EIO', 'SQLITE_FULL', 'SQLITE_READONLY'].includes(code)) return true;
    if (/^SQLITE_(IOERR|CANTOPEN)/.test(code)) return true;
  }
  return false;
}

/** Deletes unfinished downloads and quarantined files. */
export async function removeLeftovers(root: string): Promise<void> {
  for (const directory of [ingestPath(root), quarantinePath(root)])
    for (const name of await readdir(directory).catch(() => []))
      await unlink(join(directory, name)).catch(() => undefined);
}

async function explainOwner(root: string, parent: string): Promise<string> {
  const { uid, gid, mode } = await stat(existsSync(root) ? root : parent);
  const [user, group] = [process.getuid?.() ?? -1, process.getgid?.() ?? -1];
  const what = existsSync(root) ? root : `${root} cannot be created, since ${parent}`;
  const rights = (mode & 0o777).toString(8);
  return (
    `store.path: ${what} belongs to user ${uid}, group ${gid} (mode ${rights}), and layercache runs as user ${user}, group ${group}: ` +
    `"chown -R ${user}:${group} ${existsSync(root) ? root : parent}", in Kubernetes set securityContext.fsGroup to ${group}, or run it as user ${uid}`
  );
}

/** Warns of limits that the file system cannot satisfy. */
export async function warnOfLimits(
  root: string,
  { maxBytes, minFreeBytes }: { maxBytes: number; minFreeBytes: number },
  heldBytes: number,
  log: Logger,
): Promise<void> {
  const { blocks, bavail, bsize } = await statfs(root);
  const [size, free] = [blocks * bsize, bavail * bsize];
  if (minFreeBytes > free + heldBytes)
    log.warn(
      `store.minFreeBytes is ${formatSize(minFreeBytes)}, ${root} has ${formatSize(free)} free and ${formatSize(heldBytes)} stored: nothing new can be stored; lower it, or free space`,
    );
  else if (maxBytes !== Infinity && maxBytes > size)
    log.warn(
      `store.maxBytes is ${formatSize(maxBytes)}, the file system of ${root} has ${formatSize(size)}: store.minFreeBytes (${formatSize(minFreeBytes)}) is the effective limit`,
    );
}

/** By type (statfs(2)). */
const networkFileSystems: Readonly<Record<number, string>> = {
  0x6969: 'NFS',
  0x517b: 'SMB',
  0xff534d42: 'CIFS',
  0xfe534d42: 'SMB2',
  0x01021997: '9P',
  0x00c36400: 'Ceph',
};

/** Locks, renames and SQLite's shared memory are unreliable on network file systems. */
export async function warnOfNetwork(path: string, log: Logger): Promise<void> {
  const { type } = await statfs(path);
  const name = networkFileSystems[type];
  if (name !== undefined)
    log.warn({ path, fileSystem: name }, 'the data directory is on a network file system: use a local disk');
}
