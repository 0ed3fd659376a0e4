import { copyFile, link, lstat, readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { blobMediaType } from '../../oci/content.ts';
import { isDigest, type Digest } from '../../oci/digest.ts';
import { defaultManifestType } from '../../oci/manifest.ts';
import { createRepo, isTag } from '../../oci/repo.ts';
import { errorCode, MirrorError } from '../../util/errors.ts';
import { counted } from '../../util/units.ts';
import type { BlobStore } from '../blob-store.ts';
import { identifyFile } from '../disk/files.ts';
import { findDamage } from '../upkeep/check.ts';

export interface Imported {
  readonly blobs: number;
  readonly bytes: number;
  /** Blobs that were stored already. */
  readonly known: number;
  readonly tags: number;
  /** What could not be imported, and why. */
  readonly problems: readonly string[];
}

const maxProblems = 100;

/**
 * Imports a registry:2 directory, proxy cache included, as content of `registry`: blobs by hard link, else by copy,
 * each verified; and tags and repos. They count as confirmed when their link files were written: the upstream is asked
 * about older ones again, without downloads.
 */
export async function importRegistry(
  store: BlobStore,
  directory: string,
  registry: string,
): Promise<Imported> {
  const root = await findRoot(directory);
  const problems: string[] = [];
  const counts = { blobs: 0, bytes: 0, known: 0, tags: 0 };
  const imported: Digest[] = [];
  const reportProblem = (what: string, error: unknown): void => {
    if (problems.length < maxProblems)
      problems.push(
        `${what}: ${error instanceof MirrorError ? error.message : (errorCode(error) ?? (error as Error).message)}`,
      );
  };
  for (const algorithm of ['sha256', 'sha512']) {
    for (const prefix of await namesIn(join(root, 'blobs', algorithm))) {
      for (const hex of await namesIn(join(root, 'blobs', algorithm, prefix))) {
        const digest = `${algorithm}:${hex}`;
        if (!isDigest(digest)) continue;
        try {
          const size = await importBlob(store, digest, join(root, 'blobs', algorithm, prefix, hex, 'data'));
          if (size === undefined) counts.known += 1;
          else {
            imported.push(digest);
            counts.blobs += 1;
            counts.bytes += size;
          }
        } catch (error) {
          reportProblem(`blob ${digest}`, error);
        }
      }
    }
  }
  for await (const { name, path } of repositories(join(root, 'repositories'), '')) {
    try {
      counts.tags += await importRepo(store, registry, name, path);
    } catch (error) {
      reportProblem(`repository ${name}`, error);
    }
  }
  const evicted = imported.filter((digest) => !store.describe(digest)).length;
  if (evicted > 0)
    problems.push(`${counted(evicted, 'imported blob')} evicted again: they do not fit under store.maxBytes`);
  return { ...counts, problems };
}

/** Resolves to the size, or undefined if stored already. */
async function importBlob(store: BlobStore, digest: Digest, from: string): Promise<number | undefined> {
  if (store.describe(digest)) return undefined;
  const entry = await lstat(from);
  if (!entry.isFile()) throw new Error('it is not a regular file');
  const { size } = entry;
  await store.adopt(digest, size, async (path) => {
    await link(from, path).catch(() => copyFile(from, path));
    const why = await findDamage(store.verifier, path, { digest, size }, () => undefined);
    if (why !== undefined) throw new Error(why);
    return identifyFile(path, size);
  });
  return size;
}

/** Imports links and tags of one repo. Returns the number of tags. */
async function importRepo(store: BlobStore, registry: string, name: string, path: string): Promise<number> {
  const repo = createRepo(registry, name, registry);
  const { catalog } = store;
  for (const place of ['_layers', '_manifests/revisions']) {
    for (const algorithm of ['sha256', 'sha512']) {
      for (const hex of await namesIn(join(path, place, algorithm))) {
        const digest = `${algorithm}:${hex}`;
        const file = join(path, place, algorithm, hex, 'link');
        if (isDigest(digest) && store.describe(digest))
          catalog.links.add(digest, repo, {
            isPublic: false,
            now: Math.floor((await stat(file)).mtimeMs),
          });
      }
    }
  }
  let tags = 0;
  for (const tag of await namesIn(join(path, '_manifests/tags'))) {
    const file = join(path, '_manifests/tags', tag, 'current/link');
    const digest = (await readFile(file, 'utf8')).trim();
    const stored = isDigest(digest) ? store.describe(digest) : undefined;
    if (!stored || stored.mediaType === blobMediaType || !isTag(tag) || catalog.tags.get(repo, tag)) continue;
    const checkedAt = Math.floor((await stat(file)).mtimeMs);
    const mediaType = stored.mediaType || defaultManifestType(store.children(stored.digest));
    catalog.tags.set(
      repo,
      tag,
      {
        ...stored,
        mediaType,
        checkedAt,
        registryCheckedAt: checkedAt,
        isUpstreamStale: false,
        previous: null,
      },
      true,
    );
    tags += 1;
  }
  return tags;
}

async function* repositories(
  directory: string,
  name: string,
): AsyncGenerator<{ name: string; path: string }> {
  for (const entry of await namesIn(directory)) {
    if (entry === '_manifests') yield { name, path: directory };
    else if (!entry.startsWith('_')) {
      yield* repositories(join(directory, entry), name === '' ? entry : `${name}/${entry}`);
    }
  }
}

async function findRoot(directory: string): Promise<string> {
  for (const below of ['docker/registry/v2', 'registry/v2', 'v2', '.']) {
    const root = join(directory, below);
    if ((await namesIn(root)).includes('blobs') && (await namesIn(join(root, 'blobs'))).includes('sha256'))
      return root;
  }
  throw new Error(`${directory}: not the directory of a registry: it has no docker/registry/v2/blobs`);
}

async function namesIn(directory: string): Promise<string[]> {
  try {
    return (await readdir(directory)).sort();
  } catch (error) {
    if (errorCode(error) === 'ENOENT' || errorCode(error) === 'ENOTDIR') return [];
    throw error;
  }
}
