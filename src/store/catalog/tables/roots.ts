import type { Digest } from '../../../oci/digest.ts';
import type { Connection } from '../connection.ts';

/** A manifest of a repo, by tag or by digest. */
export interface Root {
  readonly registry: string;
  readonly repo: string;
  readonly tag: string | undefined;
  readonly digest: Digest;
}

/** Finds what repos hold, over the rows of tags, links and blobs. A glob is one of SQLite over `registry/repo`. */
export class Roots {
  readonly #statements: ReturnType<typeof statementsOf>;

  constructor(connection: Connection) {
    this.#statements = statementsOf(connection);
  }

  /** Tags of repos that match a glob; with `only` those of them that point to that digest. */
  tagged(glob: string, only?: Digest): Root[] {
    const { tagged, taggedAs } = this.#statements;
    return only === undefined ? tagged.all(glob) : taggedAs.all(only, glob);
  }

  /** All tags that point to a digest. */
  tagsOf(digest: Digest): Root[] {
    return this.#statements.taggedAs.all(digest, '*');
  }

  /** The next `count` of all tags, after one that was given before. */
  taggedAfter(last: Root | undefined, count: number): Root[] {
    const { taggedAfter } = this.#statements;
    return taggedAfter.all(last?.registry ?? '', last?.repo ?? '', last?.tag ?? '', count);
  }

  /** One manifest, for each repo that matches a glob and that it belongs to. */
  linked(glob: string, only: Digest): Root[] {
    return this.#statements.linkedAs.all(only, glob).map(byDigest);
  }

  /** The next `count` of all manifests that are stored, for each repo that they belong to, after one that was given before. */
  linkedAfter(last: Root | undefined, count: number): Root[] {
    const { linkedAfter } = this.#statements;
    return linkedAfter.all(last?.digest ?? '', last?.registry ?? '', last?.repo ?? '', count).map(byDigest);
  }

  /** All blobs, manifests among them, of repos that match a glob; also such as are linked and not stored. */
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
