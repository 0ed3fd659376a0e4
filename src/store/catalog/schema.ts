import type { Database } from 'better-sqlite3';

/** Migrations in order; `user_version` is the number applied. */
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

  -- Repos that a digest belongs to, as confirmed by the upstream. An empty repo stands for the whole registry: content
  -- that was fetched anonymously.
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
    -- Digest that the tag pointed to before, served while the new one cannot be fetched.
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

  -- Size of a blob that is not fetched yet.
  CREATE INDEX children_by_digest ON children (digest, size);
  `,
  `
  -- Pull quota of accounts, as reported by upstreams. Times in ms since the epoch.
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

  -- Client and upstream pulls. An empty repo stands for counts that belong to no single repo.
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
  -- Unpinned blobs are evicted in ascending priority (worth.ts).
  ALTER TABLE blobs ADD COLUMN uses INTEGER NOT NULL DEFAULT 1;
  ALTER TABLE blobs ADD COLUMN worth REAL NOT NULL DEFAULT 1;
  ALTER TABLE blobs ADD COLUMN priority REAL NOT NULL DEFAULT 1;
  ALTER TABLE blobs ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
  UPDATE blobs SET worth = (size + iif(media_type = 'application/octet-stream', 1e6, 16e6)) / max(size, 4096.0);
  UPDATE blobs SET priority = worth;
  CREATE INDEX blobs_by_priority ON blobs (priority, digest) WHERE pinned = 0;
  CREATE INDEX blobs_pinned ON blobs (digest) WHERE pinned = 1;

  -- Patterns pinned by command.
  CREATE TABLE pins (pattern TEXT PRIMARY KEY, pinned_at INTEGER NOT NULL) WITHOUT ROWID;
  CREATE INDEX tags_by_digest ON tags (digest);
  CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
  CREATE INDEX links_by_repo ON links (registry, repo, digest);
  `,
  `
  -- Pages of tag and referrers lists, as the upstream last sent them.
  CREATE TABLE lists (
    registry TEXT NOT NULL,
    repo TEXT NOT NULL,
    -- End of the path, and query.
    page TEXT NOT NULL,
    -- NULL: the upstream has no such list.
    digest TEXT,
    size INTEGER NOT NULL,
    body BLOB,
    -- Query of the next page.
    next TEXT,
    -- Filters that the upstream reports as applied.
    filters TEXT,
    checked_at INTEGER NOT NULL,
    UNIQUE (registry, repo, page)
  );
  CREATE INDEX lists_by_age ON lists (checked_at);
  `,
  `
  -- Unverified bytes belong to the registry they came from. Older rows do not record it: their files are deleted.
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

  -- A manifest without a mediaType field has the type under which each repo's upstream served it.
  ALTER TABLE links ADD COLUMN media_type TEXT;
  `,
  `
  -- When the registry at the end of a chain of mirrors confirmed the tag; NULL: at checked_at.
  ALTER TABLE tags ADD COLUMN said_at INTEGER;
  ALTER TABLE tags ADD COLUMN upstream_stale INTEGER NOT NULL DEFAULT 0;

  -- Whether the child was ever stored: a child never requested does not make an image incomplete. Unknown for older
  -- rows.
  ALTER TABLE children ADD COLUMN was_held INTEGER NOT NULL DEFAULT 1;
  `,
  `
  -- Name or pattern of the configured upstream: all registries of a pattern share one limit for lists.
  ALTER TABLE lists ADD COLUMN upstream TEXT NOT NULL DEFAULT '';
  `,
  `
  -- Manifests that may have very many children, each of which is a row: evicted first when the catalog is too large.
  CREATE INDEX blobs_wide ON blobs (used_at, digest)
    WHERE size > 16000 AND media_type <> 'application/octet-stream';
  `,
];

const schemaVersion = migrations.length;

/** Throws when the catalog has another schema version. */
export function expectVersion(db: Database): void {
  const version = db.pragma('user_version', { simple: true }) as number;
  if (version === schemaVersion) return;
  throw new Error(
    version < schemaVersion
      ? 'its catalog has an older schema: start the mirror once to migrate it'
      : 'its catalog was written by a newer layercache',
  );
}

/** Applies missing migrations. Throws when the schema version is newer than this program. */
export function migrate(db: Database, file: string): void {
  const version = db.pragma('user_version', { simple: true }) as number;
  if (version > migrations.length) {
    throw new Error(
      `${file} has schema version ${version}, this program supports up to ${migrations.length}: start the newer layercache that wrote it, or use another store.path`,
    );
  }
  migrations.slice(version).forEach((sql, i) => {
    db.transaction(() => {
      db.exec(sql);
      db.pragma(`user_version = ${version + i + 1}`);
    })();
  });
}
