import type { Database } from 'better-sqlite3';

/** The catalog's migrations, in order: the database's `user_version` is how many of them it has had. */
const migrations: readonly string[] = [
  `
  CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    stored_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL
  ) WITHOUT ROWID;
  CREATE INDEX blobs_by_use ON blobs (used_at, digest);

  -- That a digest belongs to a repo: the upstream said so. An empty repo stands for the whole registry: content that
  -- was fetched anonymously.
  CREATE TABLE links (
    digest TEXT NOT NULL,
    registry TEXT NOT NULL,
    repo TEXT NOT NULL,
    confirmed_at INTEGER NOT NULL,
    PRIMARY KEY (digest, registry, repo)
  ) WITHOUT ROWID;

  CREATE TABLE tags (
    registry TEXT NOT NULL,
    repo TEXT NOT NULL,
    tag TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    checked_at INTEGER NOT NULL,
    -- What the tag pointed to before, to be served while the new one cannot be had.
    previous TEXT,
    PRIMARY KEY (registry, repo, tag)
  ) WITHOUT ROWID;

  CREATE TABLE children (
    parent TEXT NOT NULL,
    position INTEGER NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    kind TEXT NOT NULL,
    is_foreign INTEGER NOT NULL,
    PRIMARY KEY (parent, position)
  ) WITHOUT ROWID;
  `,
  `
  -- The journal of unfinished fills: what is in their files, as [start, end, start, end, ...].
  CREATE TABLE ingests (
    digest TEXT PRIMARY KEY,
    file TEXT NOT NULL,
    size INTEGER NOT NULL,
    present TEXT NOT NULL,
    -- The part that outlives a power cut.
    synced TEXT NOT NULL,
    -- The run of the kernel whose page cache has the rest.
    boot TEXT NOT NULL,
    updated_at INTEGER NOT NULL
  ) WITHOUT ROWID;

  -- How large a blob is said to be, before anything of it is here.
  CREATE INDEX children_by_digest ON children (digest, size);
  `,
  `
  -- What upstreams have said about the pulls that an account has left. Times in ms since the epoch.
  CREATE TABLE quotas (
    registry TEXT NOT NULL,
    account TEXT NOT NULL,
    pull_limit INTEGER NOT NULL,
    remaining INTEGER NOT NULL,
    window_ms INTEGER NOT NULL,
    source TEXT NOT NULL,
    risen_at INTEGER NOT NULL,
    observed_at INTEGER NOT NULL,
    back_at INTEGER,
    PRIMARY KEY (registry, account)
  ) WITHOUT ROWID;

  -- What pulls have cost and saved. An empty repo stands for what cannot be told by repo.
  CREATE TABLE ledger (
    day TEXT NOT NULL,
    registry TEXT NOT NULL,
    repo TEXT NOT NULL,
    client_pulls INTEGER NOT NULL,
    upstream_pulls INTEGER NOT NULL,
    served_bytes INTEGER NOT NULL,
    fetched_bytes INTEGER NOT NULL,
    token_calls INTEGER NOT NULL,
    limited INTEGER NOT NULL,
    bridged_seconds REAL NOT NULL,
    PRIMARY KEY (day, registry, repo)
  ) WITHOUT ROWID;
  `,
  `
  -- What is worth least leaves first (worth.ts); what is pinned stays.
  ALTER TABLE blobs ADD COLUMN uses INTEGER NOT NULL DEFAULT 1;
  ALTER TABLE blobs ADD COLUMN worth REAL NOT NULL DEFAULT 1;
  ALTER TABLE blobs ADD COLUMN priority REAL NOT NULL DEFAULT 1;
  ALTER TABLE blobs ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
  UPDATE blobs SET worth = (size + iif(media_type = 'application/octet-stream', 1e6, 16e6)) / max(size, 4096.0);
  UPDATE blobs SET priority = worth;
  CREATE INDEX blobs_by_priority ON blobs (priority, digest) WHERE pinned = 0;
  CREATE INDEX blobs_pinned ON blobs (digest) WHERE pinned = 1;

  -- Patterns that were pinned while it ran.
  CREATE TABLE pins (pattern TEXT PRIMARY KEY, pinned_at INTEGER NOT NULL) WITHOUT ROWID;
  CREATE INDEX tags_by_digest ON tags (digest);
  CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
  CREATE INDEX links_by_repo ON links (registry, repo, digest);
  `,
  `
  -- Pages of tags and of referrers, as the upstream last gave them.
  CREATE TABLE lists (
    registry TEXT NOT NULL,
    repo TEXT NOT NULL,
    -- What of it: the end of the path, and the query.
    page TEXT NOT NULL,
    -- Absent: the upstream keeps no such list.
    digest TEXT,
    size INTEGER NOT NULL,
    body BLOB,
    -- The query of the page after it.
    next TEXT,
    -- What the upstream says that it has filtered by.
    filters TEXT,
    checked_at INTEGER NOT NULL,
    UNIQUE (registry, repo, page)
  );
  CREATE INDEX lists_by_age ON lists (checked_at);
  `,
  `
  -- Unverified bytes belong to the registry that they came from. Of older ones that is not known: their files go.
  DROP TABLE ingests;
  CREATE TABLE ingests (
    registry TEXT NOT NULL,
    digest TEXT NOT NULL,
    file TEXT NOT NULL,
    size INTEGER NOT NULL,
    -- What is in the file, as [start, end, start, end, ...].
    present TEXT NOT NULL,
    -- The part that outlives a power cut.
    synced TEXT NOT NULL,
    -- The run of the kernel whose page cache has the rest.
    boot TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (registry, digest)
  ) WITHOUT ROWID;

  -- A manifest that names no type of its own is what each repo's upstream has given it as.
  ALTER TABLE links ADD COLUMN media_type TEXT;
  `,
  `
  -- When the registry at the end of a chain of mirrors said it; absent: when we were told.
  ALTER TABLE tags ADD COLUMN said_at INTEGER;
  ALTER TABLE tags ADD COLUMN upstream_stale INTEGER NOT NULL DEFAULT 0;

  -- Whether the part was ever stored: what nobody has asked for yet is not missed. Of older ones that is not known.
  ALTER TABLE children ADD COLUMN was_held INTEGER NOT NULL DEFAULT 1;
  `,
  `
  -- The name or pattern by which the registry is configured: lists of all that a pattern covers share their room.
  ALTER TABLE lists ADD COLUMN upstream TEXT NOT NULL DEFAULT '';
  `,
  `
  -- Manifests that may have very many parts, of which each is a row: they leave first when the catalog is too large.
  CREATE INDEX blobs_wide ON blobs (used_at, digest)
    WHERE size > 16000 AND media_type <> 'application/octet-stream';
  `,
];

/** What this program reads and writes. */
const schemaVersion = migrations.length;

/** Throws when another version of the program has written it. */
export function expectVersion(db: Database): void {
  const version = db.pragma('user_version', { simple: true }) as number;
  if (version === schemaVersion) return;
  throw new Error(
    version < schemaVersion
      ? 'its catalog is an older one: start the mirror once'
      : 'a newer layercache wrote it',
  );
}

/** Brings the catalog to this program's version. Throws when it is a newer program's. */
export function migrate(db: Database, file: string): void {
  const version = db.pragma('user_version', { simple: true }) as number;
  if (version > migrations.length) {
    throw new Error(
      `${file} has schema version ${version}, this program knows ${migrations.length}: start the newer layercache that wrote it, or use another store.path`,
    );
  }
  migrations.slice(version).forEach((sql, i) => {
    db.transaction(() => {
      db.exec(sql);
      db.pragma(`user_version = ${version + i + 1}`);
    })();
  });
}
