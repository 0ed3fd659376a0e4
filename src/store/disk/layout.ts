import { join } from 'node:path';
import { algorithmOf, hexOf, type Digest } from '../../oci/digest.ts';

/** Where what is in a data directory. */
export function catalogPath(root: string): string {
  return join(root, 'catalog.db');
}

/** What was written to the catalog and is not in it yet. */
export function walPath(root: string): string {
  return `${catalogPath(root)}-wal`;
}

/** The last whole copy of the catalog. */
export function backupPath(root: string): string {
  return join(root, 'catalog.backup.db');
}

export function lockPath(root: string): string {
  return join(root, 'lock.db');
}

export function blobsPath(root: string): string {
  return join(root, 'blobs');
}

export function blobPath(root: string, digest: Digest): string {
  const hex = hexOf(digest);
  return join(blobsPath(root), algorithmOf(digest), hex.slice(0, 2), hex);
}

/** Of unfinished fills. */
export function ingestPath(root: string): string {
  return join(root, 'ingest');
}

/** Of files that were not what they should have been. */
export function quarantinePath(root: string): string {
  return join(root, 'quarantine');
}
