import { join } from 'node:path';
import { algorithmOf, hexOf, type Digest } from '../../oci/digest.ts';

/** Paths within a data directory. */
export function catalogPath(root: string): string {
  return join(root, 'catalog.db');
}

/** The catalog's write-ahead log. */
export function walPath(root: string): string {
  return `${catalogPath(root)}-wal`;
}

/** The last complete copy of the catalog. */
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

/** Running and unfinished ingests. */
export function ingestPath(root: string): string {
  return join(root, 'ingest');
}

/** Corrupt files. */
export function quarantinePath(root: string): string {
  return join(root, 'quarantine');
}
