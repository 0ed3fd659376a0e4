import type { Digest } from '../../../oci/digest.ts';
import type { Connection } from '../connection.ts';

/** A manifest of a repo: by tag, or by digest if `tag` is undefined. */
export interface Root {
  readonly registry: string;
  readonly repo: string;
  readonly tag: string | undefined;
  readonly digest: Digest;
}

/** Queries over tags, links and blobs. A glob is an SQLite GLOB over `registry/repo`. */
export class Roots {
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#statements = statementsOf(connection);
  }

  /** Tags of matching repos; `only`: those that point to this digest. */
  tagged(glob: string, only?: Digest): Root[] {
    const { tagged, taggedAs } = this.#statements;
    return only === undefined ? tagged.all(glob) : taggedAs.all(only, glob);
  }

  /** All tags that point to the digest. */
  tagsOf(digest: Digest): Root[] {
    return this.#statements.taggedAs.all(digest, '*');
  }

  /** The next `count` tags in primary-key order, after `last`. */
  taggedAfter(last: Root | undefined, count: number): Root[] {
    const { taggedAfter } = this.#statements;
    return taggedAfter.all(last?.registry ?? '', last?.repo ?? '', last?.tag ?? '', count);
  }

  /** The manifest `only`, once for each matching repo that it is linked to. */
  linked(glob: string, only: Digest): Root[] {
    return this.#statements.linkedAs.all(only, glob).map(byDigest);
  }

  /** The next `count` pairs of stored manifest and linked repo, after `last`. */
  linkedAfter(last: Root | undefined, count: number): Root[] {
    const { linkedAfter } = this.#statements;
    return linkedAfter.all(last?.digest ?? '', last?.registry ?? '', last?.repo ?? '', count).map(byDigest);
  }

  /** All blobs and manifests linked to matching repos, stored or not. */
  blobsOf(glob: string): Root[] {
    return this.#statements.blobsOf.all(glob).map(byDigest);
  }
}

function byDigest(row: Omit<Root, 'tag'>): Root {
  return { ...row, tag: undefined };
}

function statementsOf(connection: Connection) {
  return {
    tagged: connection.prepare<[string], Root>(
      `SELECT registry, repo, tag, digest FROM tags WHERE registry || '/' || repo GLOB ?`,
    ),
    taggedAs: connection.prepare<[Digest, string], Root>(
      `SELECT registry, repo, tag, digest FROM tags WHERE digest = ? AND registry || '/' || repo GLOB ?`,
    ),
    taggedAfter: connection.prepare<[string, string, string, number], Root>(
      `SELECT registry, repo, tag, digest FROM tags WHERE (registry, repo, tag) > (?, ?, ?)
       ORDER BY registry, repo, tag LIMIT ?`,
    ),
    linkedAs: connection.prepare<[Digest, string], Omit<Root, 'tag'>>(
      `SELECT registry, repo, digest FROM links JOIN blobs USING (digest)
       WHERE links.digest = ? AND repo <> '' AND registry || '/' || repo GLOB ?
         AND blobs.media_type <> 'application/octet-stream'`,
    ),
    linkedAfter: connection.prepare<[string, string, string, number], Omit<Root, 'tag'>>(
      `SELECT registry, repo, links.digest FROM links CROSS JOIN blobs ON blobs.digest = links.digest
       WHERE (links.digest, registry, repo) > (?, ?, ?) AND repo <> '' AND blobs.media_type <> 'application/octet-stream'
       ORDER BY links.digest, registry, repo LIMIT ?`,
    ),
    blobsOf: connection.prepare<[string], Omit<Root, 'tag'>>(
      `SELECT registry, repo, digest FROM links WHERE repo <> '' AND registry || '/' || repo GLOB ?`,
    ),
  };
}
