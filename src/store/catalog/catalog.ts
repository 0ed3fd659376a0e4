import Database from 'better-sqlite3';
import { existsSync, renameSync, rmSync, statSync } from 'node:fs';
import { blobMediaType, type Descriptor } from '../../oci/content.ts';
import type { Digest } from '../../oci/digest.ts';
import type { Child } from '../../oci/manifest.ts';
import type { Repo, RepoName } from '../../oci/repo.ts';
import type { Counts, LedgerRow, LedgerStore } from '../../telemetry/ledger.ts';
import { errorCode } from '../../util/errors.ts';
import type { QuotaState } from '../../util/quota-state.ts';
import { stepMs } from '../../util/steps.ts';
import { copyOf, corruptCode, expectWhole, isCorrupt } from './catalog-file.ts';
import { migrate } from './schema.ts';
import { mostUses, worthOf } from './worth.ts';
import { WriteQueue } from './write-queue.ts';

export interface TagRow extends Descriptor {
  /** When the upstream last said so (ms since the epoch). */
  readonly checkedAt: number;
  /** When the registry at the end of a chain of mirrors said so, as far as is known (ms since the epoch). */
  readonly saidAt: number;
  /** The upstream is a mirror that could not ask anybody. */
  readonly isUpstreamStale: boolean;
  /** What the tag pointed to before. */
  readonly previous: Digest | null;
}

export interface LinkRow {
  /** Milliseconds since the epoch. */
  readonly confirmedAt: number;
  /** As what a manifest was given for this repo. */
  readonly mediaType: string | null;
}

/** A page of tags or referrers, as the upstream gave it. */
export interface ListRow {
  /** Of the page's bytes; null: the upstream keeps no such list. */
  readonly digest: Digest | null;
  readonly size: number;
  /** The query of the page after it. */
  readonly next: string | null;
  /** What the upstream says that it has filtered by. */
  readonly filters: string | null;
  /** Milliseconds since the epoch. */
  readonly checkedAt: number;
}

/** A blob that may leave. */
export interface Victim {
  readonly digest: Digest;
  readonly size: number;
  readonly priority: number;
}

export interface WideManifest extends Victim {
  /** Milliseconds since the epoch. */
  readonly usedAt: number;
}

/** The journal of an unfinished fill. */
export interface IngestRow {
  readonly registry: string;
  readonly digest: Digest;
  /** Its name in the directory of ingests. */
  readonly file: string;
  readonly size: number;
  readonly present: string;
  readonly synced: string;
  readonly boot: string;
  /** Milliseconds since the epoch. */
  readonly updatedAt: number;
}

/** A manifest of a repo, by tag or by digest. */
export interface Root {
  readonly registry: string;
  readonly repo: string;
  readonly tag: string | undefined;
  readonly digest: Digest;
}

export interface CatalogOptions {
  /** It was opened by whoever reads it only, and is closed with this. */
  reader?: Database.Database;
  /** A copy of the file as it was when it was last written through; nothing of it comes back to the disk. */
  readonly inMemory?: boolean;
  /** A write that had to wait could not be done in the end. */
  readonly onLostWrite?: (error: unknown) => void;
  /**
   * It is found to be damaged while it is in use. From then on nothing is written to it, and what cannot be read is not known.
   * Without it every access says so by itself.
   */
  readonly onDamaged?: (error: unknown) => void;
}

/** Lists are kept beside the cap. */
const maxListBytes = 64 * 1024 * 1024;
const maxLists = 50_000;
const maxListsOfRepo = 500;

/** The write-ahead log is cut to this when it is begun anew. */
const walLimitBytes = 4 * 1024 * 1024;

/** What is larger is read through behind the start: that takes longer than whoever starts it waits gladly. */
const largeBytes = 128 * 1024 * 1024;

/** In one step, which nothing else can interrupt. */
const usesAtOnce = 500;
const childrenAtOnce = 1000;
const heldAtOnce = 500;

/** A repo of this name stands for its whole registry. */
export const everywhere = '';

/** Files take whole blocks, and the cap is meant as `du` counts. */
export function footprint(size: number): number {
  return Math.ceil(size / 4096) * 4096;
}

/** The same in SQL, of the column `size`. */
export const footprintOfSize = '(size + 4095) / 4096 * 4096';

/**
 * What the store knows, in SQLite: synchronous, so that looking up and leasing happen in one tick. Use-times are
 * gathered and written in batches; everything else is written at once (WAL, without waiting for the disk).
 */
export class Catalog implements LedgerStore {
  /** What is written waits in it while another connection has the write lock; reads do not see it before. */
  readonly queue: WriteQueue;
  #db: Database.Database;
  /** Tags that were new or have moved since it was last set to 0. */
  movedTags = 0;
  /** Uses that are not written down yet. */
  readonly #used = new Map<Digest, { at: number; count: number }>();
  #lists: { count: number; bytes: number } | undefined;
  /** The priority of what has left last: what comes now starts above it. */
  #inflation: number;
  #statements: ReturnType<typeof prepareStatements>;
  readonly #file: string;
  readonly #onDamaged: ((error: unknown) => void) | undefined;
  #damage: Error | undefined;
  /** Is told of every tag that points elsewhere from now on. */
  onChange: (registry: string, repo: string, tag: string) => void = () => undefined;

  /** Throws when it is damaged, in use by something else, or another version's. */
  constructor(file: string, options: CatalogOptions = {}) {
    const { reader, inMemory = false, onLostWrite = (): void => undefined, onDamaged } = options;
    this.queue = new WriteQueue(onLostWrite, (work) => this.#db.transaction(work).immediate());
    this.#file = file;
    this.#onDamaged = onDamaged;
    this.#db = reader ?? (inMemory ? copyInMemory(file) : openForWriting(file, true));
    try {
      this.#statements = this.#prepare();
      // What is left is worth at least what has left.
      this.#inflation = this.#statements.leastPriority.get()?.least ?? 0;
    } catch (error) {
      this.#db.close();
      throw explain(error, file);
    }
  }

  #prepare(): ReturnType<typeof prepareStatements> {
    const statements = prepareStatements(this.#db);
    if (this.#onDamaged) this.#guard(statements);
    return statements;
  }

  /** No request ends for what cannot be read of a damaged file. */
  #guard(statements: ReturnType<typeof prepareStatements>): void {
    const read = <T>(work: () => T, unknown: T): T => {
      try {
        return work();
      } catch (error) {
        if (!isCorrupt(error)) throw error;
        this.damaged(error);
        return unknown;
      }
    };
    for (const statement of Object.values(statements) as unknown as Guarded[]) {
      const get = statement.get.bind(statement);
      const all = statement.all.bind(statement);
      const run = statement.run.bind(statement);
      statement.get = (...values) => read(() => get(...values), undefined);
      statement.all = (...values) => read(() => all(...values), []);
      statement.run = (...values) => {
        if (this.#damage) return { changes: 0, lastInsertRowid: 0 };
        try {
          return run(...values);
        } catch (error) {
          if (isCorrupt(error)) this.damaged(error);
          throw error;
        }
      };
    }
  }

  /** Somebody has found it so. */
  damaged(error: unknown): void {
    if (this.#damage) return;
    this.#damage = explain(error, this.#file) as Error;
    this.#onDamaged?.(this.#damage);
  }

  get isDamaged(): boolean {
    return this.#damage !== undefined;
  }

  /** For work that must not go on with less than all that was known. */
  expectUndamaged(): void {
    if (this.#damage) throw this.#damage;
  }

  /** Goes on with the file, and forgets what was only in memory. Throws when it cannot be used: then all is as it was. */
  openFile(file: string): void {
    const db = openForWriting(file);
    this.#db.close();
    this.#db = db;
    this.#statements = this.#prepare();
  }

  /** Its file is gone, and what it held is still there: writes it to a new file, and goes on with that. */
  async rescue(file: string): Promise<void> {
    await this.queue.during(async () => {
      const copy = `${file}.rescued`;
      await this.#db.backup(copy);
      // From here to the new connection nobody reads.
      this.#db.close();
      for (const ending of ['-wal', '-shm']) rmSync(file + ending, { force: true });
      renameSync(copy, file);
      this.#db = openForWriting(file);
      this.#statements = this.#prepare();
    });
  }

  /** All of it, or nothing. */
  transaction(work: () => void): void {
    this.#db.transaction(work)();
  }

  blob(digest: Digest): Descriptor | undefined {
    return this.#statements.blob.get(digest);
  }

  /**
   * Returns whether it is new. What is known as a manifest stays one, when it comes as a blob too; its type and children are
   * those that its bytes name, and so the same whoever gives it.
   */
  addBlob({ digest, size, mediaType }: Descriptor, children: readonly Child[], now: number): boolean {
    this.expectUndamaged();
    const { addBlob, setMediaType, addChild, removeChildren, setHeld } = this.#statements;
    return this.#db.transaction(() => {
      const isManifest = mediaType !== blobMediaType;
      const worth = worthOf(size, isManifest);
      const priority = this.#inflation + worth;
      const isNew = addBlob.run(digest, size, mediaType, now, now, worth, priority).changes === 1;
      if (isNew) setHeld.run(digest);
      if (!isManifest) return isNew;
      if (!isNew) {
        if (this.blob(digest)?.mediaType === mediaType) return false;
        setMediaType.run(mediaType, worth, digest);
      }
      removeChildren.run(digest);
      children.forEach((child, i) => {
        const { size: bytes, kind, foreign } = child;
        addChild.run(digest, i, child.digest, bytes, kind, foreign ? 1 : 0, child.digest);
      });
      return isNew;
    })();
  }

  /**
   * Forgets a blob; tags that name it stay, and find it again when it is fetched again. Of very many children only some go:
   * returns whether there are more, which are to be removed by `removeMore`.
   */
  removeBlob(digest: Digest): boolean {
    this.expectUndamaged();
    this.#used.delete(digest);
    return this.#db.transaction(() => {
      this.#statements.removeBlob.run(digest);
      return this.removeMore(digest);
    })();
  }

  /** Some children of a blob that is gone. Returns whether there are more. */
  removeMore(digest: Digest): boolean {
    const { removeSomeChildren } = this.#statements;
    if (this.blob(digest)) return false;
    return removeSomeChildren.run(digest, digest, childrenAtOnce).changes >= childrenAtOnce;
  }

  /** Bytes of its file: all of it, and what of that is free for what comes next. */
  size(): { bytes: number; free: number } {
    const number = (name: string): number => this.#db.pragma(name, { simple: true }) as number;
    const page = number('page_size');
    return { bytes: number('page_count') * page, free: number('freelist_count') * page };
  }

  /** The next manifests that may have many children, those first that nobody has asked for longest; pinned ones stay. */
  wideManifests(count: number, after: WideManifest | undefined): WideManifest[] {
    return this.#statements.wideManifests.all(after?.usedAt ?? -1, after?.digest ?? '', count);
  }

  /** Whether a manifest has more than so many children. */
  hasMoreChildren(digest: Digest, than: number): boolean {
    return this.#statements.childAt.get(digest, than) !== undefined;
  }

  /** Nobody has it any more; whoever gets it anew is linked anew. */
  removeLinksTo(digest: Digest): void {
    this.queue.do(() => this.#statements.removeLinks.run(digest));
  }

  used(digest: Digest, now: number): void {
    const use = this.#used.get(digest);
    if (use) {
      use.at = now;
      use.count += 1;
    } else this.#used.set(digest, { at: now, count: 1 });
  }

  /** Writes down that it was used, if that is not written yet: what is chosen to leave is to be chosen rightly. Returns whether. */
  flushUse(digest: Digest): boolean {
    const use = this.#used.get(digest);
    if (!use) return false;
    this.#used.delete(digest);
    const { at, count } = use;
    this.#statements.use.run({ digest, at, count, inflation: this.#inflation, mostUses });
    return true;
  }

  /** Writes down some of them, since each takes its time in a large catalog. Returns whether there are more. */
  flushUses(): boolean {
    if (this.#used.size === 0 || this.queue.isWaiting) return false;
    const { use } = this.#statements;
    const inflation = this.#inflation;
    const until = performance.now() + stepMs;
    const written: Digest[] = [];
    this.#db.transaction(() => {
      for (const [digest, { at, count }] of this.#used) {
        use.run({ digest, at, count, inflation, mostUses });
        if (written.push(digest) >= usesAtOnce || performance.now() >= until) break;
      }
    })();
    for (const digest of written) this.#used.delete(digest);
    return this.#used.size > 0;
  }

  /** The next `count` blobs that are worth least and not pinned, after one that was given before. */
  leastWorthy(count: number, after: Victim | undefined): Victim[] {
    return this.#statements.leastWorthy.all(after?.priority ?? -1, after?.digest ?? '', count);
  }

  /** Blobs that are not pinned and that nobody has asked for since `before` (ms since the epoch). */
  idleSince(before: number, count: number): Victim[] {
    return this.#statements.idleSince.all(before, count);
  }

  /** It has left for want of room. */
  evicted({ priority }: Victim): void {
    this.#inflation = Math.max(this.#inflation, priority);
  }

  /** What all blobs take on disk. */
  footprint(): number {
    return this.#statements.footprint.get()?.total ?? 0;
  }

  /** All blobs whose digest starts with `sha256:ab`. */
  digestsWithPrefix(prefix: string): Digest[] {
    return this.#statements.digestsWithPrefix.all(prefix, `${prefix}g`).map(({ digest }) => digest);
  }

  children(parent: Digest): Child[] {
    return this.#statements.children.all(parent).map((row) => ({ ...row, foreign: row.foreign === 1 }));
  }

  /** Those children of a manifest that are held, some at a time. */
  *heldChildren(parent: Digest): Generator<Digest[], undefined> {
    let from = 0;
    do {
      const to = from + heldAtOnce;
      yield this.#statements.heldChildren.all(parent, from, to).map(({ digest }) => digest);
      from = to;
    } while (this.hasMoreChildren(parent, from));
  }

  /** Whether it was ever stored, as a part of a manifest that is held. */
  wasHeld(digest: Digest): boolean {
    return this.#statements.wasHeld.get(digest) !== undefined;
  }

  /** How large some manifest says that the digest is. */
  sizeOfChild(digest: Digest): number | undefined {
    return this.#statements.sizeOfChild.get(digest)?.size;
  }

  ingests(): IngestRow[] {
    return this.#statements.ingests.all();
  }

  setIngest({ registry, digest, file, size, present, synced, boot, updatedAt }: IngestRow): void {
    this.queue.do(() => {
      this.#statements.setIngest.run(registry, digest, file, size, present, synced, boot, updatedAt);
    });
  }

  removeIngest(registry: string, digest: Digest): void {
    this.queue.do(() => {
      this.#statements.removeIngest.run(registry, digest);
    });
  }

  /** What was last confirmed of the digest for the repo; an empty repo stands for the whole registry. */
  link(digest: Digest, registry: string, repo: string): LinkRow | undefined {
    return this.#statements.link.get(digest, registry, repo);
  }

  /** The digest belongs to the repo, as `mediaType` if it is a manifest; `isPublic`: and to every repo of its registry. */
  addLink(
    digest: Digest,
    { registry, name }: RepoName,
    { isPublic, mediaType, now }: { isPublic: boolean; mediaType?: string | undefined; now: number },
  ): void {
    this.queue.do(() => {
      const { addLink } = this.#statements;
      this.#db.transaction(() => {
        addLink.run(digest, registry, name, now, mediaType ?? null);
        if (isPublic) addLink.run(digest, registry, everywhere, now, null);
      })();
    });
  }

  removeLink(digest: Digest, registry: string, repo: string): void {
    this.queue.do(() => {
      this.#statements.removeLink.run(digest, registry, repo);
    });
  }

  /** Registries of which something is public. */
  publicRegistries(): string[] {
    return this.#statements.publicRegistries.all().map(({ registry }) => registry);
  }

  removePublicLinks(registry: string): void {
    this.queue.do(() => {
      this.#statements.removePublicLinks.run(registry);
    });
  }

  tag(repo: RepoName, tag: string): TagRow | undefined {
    const row = this.#statements.tag.get(repo.registry, repo.name, tag);
    return row && { ...row, isUpstreamStale: row.isUpstreamStale === 1 };
  }

  /** `isMoved`: it has not pointed there before. */
  setTag(repo: RepoName, tag: string, row: TagRow, isMoved: boolean): void {
    if (isMoved) {
      this.onChange(repo.registry, repo.name, tag);
      this.movedTags += 1;
    }
    const { digest, size, mediaType, checkedAt, saidAt, isUpstreamStale, previous } = row;
    this.queue.do(() =>
      this.#statements.setTag.run(
        ...[repo.registry, repo.name, tag, digest, size, mediaType],
        ...[checkedAt, saidAt, isUpstreamStale ? 1 : 0, previous],
      ),
    );
  }

  removeTag(repo: RepoName, tag: string): void {
    this.onChange(repo.registry, repo.name, tag);
    this.queue.do(() => this.#statements.removeTag.run(repo.registry, repo.name, tag));
  }

  list(repo: RepoName, page: string): ListRow | undefined {
    return this.#statements.list.get(repo.registry, repo.name, page);
  }

  listBody(repo: RepoName, page: string): Buffer | undefined {
    return this.#statements.listBody.get(repo.registry, repo.name, page)?.body ?? undefined;
  }

  /**
   * Those that were asked about longest ago make room: first of the same repo, since clients choose the pages, then of the
   * upstream whose lists take most.
   */
  setList({ registry, name, upstream }: Repo, page: string, row: ListRow, body: Buffer | null): void {
    this.queue.do(() => {
      const { setList, listsOfRepo, removeOldestListOf, listsSize, removeOldestList } = this.#statements;
      const { digest, size, next, filters, checkedAt } = row;
      this.#db.transaction(() => {
        setList.run(registry, name, page, digest, size, body, next, filters, checkedAt, upstream);
        const excess = (listsOfRepo.get(registry, name)?.count ?? 0) - maxListsOfRepo;
        if (excess > 0) removeOldestListOf.run(registry, name, excess);
        this.#lists ??= listsSize.get() ?? { count: 0, bytes: 0 };
        // What it replaces is counted too: more often than needed it is counted anew.
        this.#lists.count += 1;
        this.#lists.bytes += size;
        if (this.#lists.count <= maxLists && this.#lists.bytes <= maxListBytes) return;
        this.#lists = listsSize.get() ?? { count: 0, bytes: 0 };
        while (this.#lists.count > maxLists * 0.9 || this.#lists.bytes > maxListBytes * 0.9) {
          const removed = removeOldestList.get();
          if (!removed) break;
          this.#lists.count -= 1;
          this.#lists.bytes -= removed.bytes;
        }
      })();
    });
  }

  /** The upstream keeps no such list. */
  setNoList(repo: Repo, page: string, checkedAt: number): void {
    this.setList(repo, page, { digest: null, size: 0, next: null, filters: null, checkedAt }, null);
  }

  /** All pages that begin so. */
  removeLists({ registry, name }: RepoName, begin: string): void {
    this.queue.do(() => {
      this.#statements.removeLists.run(registry, name, `${begin}*`);
    });
  }

  /** Of all repos that match a GLOB over `registry/repo`. */
  removeListsOf(glob: string): void {
    this.queue.do(() => {
      this.#statements.removeListsOf.run(glob);
    });
  }

  quota(registry: string, account: string): QuotaState | undefined {
    return this.#statements.quota.get(registry, account);
  }

  setQuota(registry: string, account: string, row: QuotaState): void {
    this.queue.do(() => {
      const { limit, remaining, windowMs, source, risenAt, observedAt, backAt } = row;
      const { setQuota } = this.#statements;
      setQuota.run(registry, account, limit, remaining, windowMs, source, risenAt, observedAt, backAt);
    });
  }

  removeQuota(registry: string, account: string): void {
    this.queue.do(() => {
      this.#statements.removeQuota.run(registry, account);
    });
  }

  /** Where some slow work stands. */
  note(name: string): string | undefined {
    return this.#statements.note.get(name)?.value;
  }

  setNote(name: string, value: string): void {
    this.queue.do(() => {
      this.#statements.setNote.run(name, value);
    });
  }

  /** In the order of digests, after one that was given before. */
  blobsAfter(digest: string, count: number): Descriptor[] {
    return this.#statements.blobsAfter.all(digest, count);
  }

  /** The repos that it belongs to. */
  reposOf(digest: Digest): { registry: string; repo: string }[] {
    return this.#statements.reposOf.all(digest);
  }

  isPinned(digest: Digest): boolean {
    return this.#statements.isPinned.get(digest) !== undefined;
  }

  /** Manifests that are held and name it. */
  parents(digest: Digest): Digest[] {
    return this.#statements.parents.all(digest).map(({ parent }) => parent);
  }

  /** Tags that point to it. */
  tagsOf(digest: Digest): Root[] {
    return this.#statements.taggedAs.all(digest, '*');
  }

  /** All blobs of repos that match a GLOB over `registry/repo`. */
  blobsOf(glob: string): Root[] {
    return this.#statements.blobsOf.all(glob).map((row) => ({ ...row, tag: undefined }));
  }

  /** Patterns that were pinned while it ran. */
  pins(): string[] {
    return this.#statements.pins.all().map(({ pattern }) => pattern);
  }

  addPin(pattern: string, now: number): void {
    this.#statements.addPin.run(pattern, now);
  }

  /** Returns whether it was there. */
  removePin(pattern: string): boolean {
    return this.#statements.removePin.run(pattern).changes === 1;
  }

  /** Blobs that are pinned, in the order of digests, after one that was given before. */
  pinnedAfter(digest: string, count: number): Digest[] {
    return this.#statements.pinned.all(digest, count).map(({ digest }) => digest);
  }

  setPinned(pinned: readonly Digest[], others: readonly Digest[]): void {
    this.queue.do(() => {
      if (pinned.length + others.length === 0) return;
      const { setPinned } = this.#statements;
      this.#db.transaction(() => {
        for (const digest of pinned) setPinned.run(1, digest);
        for (const digest of others) setPinned.run(0, digest);
      })();
    });
  }

  /** Whether it is part of a manifest that is pinned. */
  hasPinnedParent(digest: Digest): boolean {
    return this.#statements.hasPinnedParent.get(digest) !== undefined;
  }

  /** Tags of repos that match a GLOB over `registry/repo`; or those of them that point to one digest. */
  tagged(glob: string, only?: Digest): Root[] {
    const { tagged, taggedAs } = this.#statements;
    return only === undefined ? tagged.all(glob) : taggedAs.all(only, glob);
  }

  /** One manifest, as belonging to repos that match a GLOB over `registry/repo`. */
  linked(glob: string, only: Digest): Root[] {
    return this.#statements.linkedAs.all(only, glob).map((row) => ({ ...row, tag: undefined }));
  }

  /** All tags, some at a time, after one that was given before. */
  tagsAfter(last: Root | undefined, count: number): Root[] {
    return this.#statements.tagsAfter.all(last?.registry ?? '', last?.repo ?? '', last?.tag ?? '', count);
  }

  /** All manifests, for each repo that they belong to, some at a time, after one that was given before. */
  linkedAfter(last: Root | undefined, count: number): Root[] {
    const { linkedAfter } = this.#statements;
    const rows = linkedAfter.all(last?.digest ?? '', last?.registry ?? '', last?.repo ?? '', count);
    return rows.map((row) => ({ ...row, tag: undefined }));
  }

  addToLedger(rows: readonly LedgerRow[]): void {
    this.queue.do(() => {
      const { addToLedger } = this.#statements;
      this.#db.transaction(() => {
        for (const row of rows) addToLedger.run(row);
      })();
    });
  }

  /** By days that are in it, not by today's date: a clock that is wrong for a moment costs nothing. */
  pruneLedger(days: number): void {
    this.queue.do(() => {
      this.#statements.pruneLedger.run(days);
    });
  }

  ledgerTotals(): ({ readonly registry: string } & Counts)[] {
    return this.#statements.ledgerTotals.all();
  }

  close(): void {
    this.queue.giveUp();
    this.#db.close();
  }
}

/** Of a statement, what may find the file damaged. */
interface Guarded {
  get: (...values: unknown[]) => unknown;
  all: (...values: unknown[]) => unknown[];
  run: (...values: unknown[]) => Database.RunResult;
}

/** What is written is lost with it. */
function copyInMemory(file: string): Database.Database {
  let db: Database.Database | undefined;
  try {
    // Where there is none nothing is known.
    const isThere = existsSync(file) && statSync(file).size > 0;
    db = isThere ? copyOf(file) : new Database(':memory:');
    expectWhole(db);
    migrate(db, file);
    return db;
  } catch (error) {
    db?.close();
    throw explain(error, file);
  }
}

/** Whether it is read through behind the start. */
export function isLarge(file: string): boolean {
  const { size } = statSync(file, { throwIfNoEntry: false }) ?? { size: 0 };
  return size > largeBytes;
}

/** `checks`: unless it is large, it is read through first. */
function openForWriting(file: string, checks = false): Database.Database {
  const db = new Database(file);
  try {
    // Of a file that is there it changes nothing before the next VACUUM (disk-worker).
    db.pragma('auto_vacuum = INCREMENTAL');
    db.pragma('journal_mode = WAL');
    if (checks && !isLarge(file)) expectWhole(db);
    db.pragma('synchronous = NORMAL');
    // Checkpoints wait for the disk: a worker thread makes them (disk-worker).
    db.pragma('wal_autocheckpoint = 0');
    db.pragma(`journal_size_limit = ${walLimitBytes}`);
    migrate(db, file);
    // It is waited for by everybody: what another program has locked for longer is written later.
    db.pragma('busy_timeout = 50');
    return db;
  } catch (error) {
    db.close();
    throw explain(error, file);
  }
}

/** What an operator can do about it. */
export function explain(error: unknown, file: string): unknown {
  const code = errorCode(error) ?? '';
  const remedy = corruptCode.test(code)
    ? 'it is damaged: "layercache store rebuild" makes a new one from its backup and the files'
    : code.startsWith('SQLITE_BUSY')
      ? 'another program has it locked: end that one'
      : code === 'SQLITE_FULL' || code.startsWith('SQLITE_IOERR')
        ? 'the disk is full or cannot be written: make some room, the files under ingest/ and quarantine/ may go'
        : code === 'SQLITE_ERROR'
          ? 'its tables are not those of this program: "layercache store rebuild" makes new ones from the files'
          : code === 'SQLITE_READONLY' || code.startsWith('SQLITE_CANTOPEN')
            ? 'it cannot be written: give this user the directory'
            : undefined;
  if (remedy === undefined) return error;
  return new Error(`${file} cannot be used (${code}): ${remedy}`, { cause: error });
}

function prepareStatements(db: Database.Database) {
  return {
    blob: db.prepare<[Digest], Descriptor>(
      'SELECT digest, size, media_type AS mediaType FROM blobs WHERE digest = ?',
    ),
    addBlob: db.prepare(
      `INSERT INTO blobs (digest, size, media_type, stored_at, used_at, worth, priority) VALUES (?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (digest) DO NOTHING`,
    ),
    setMediaType: db.prepare<[string, number, Digest]>(
      'UPDATE blobs SET media_type = ?, worth = ? WHERE digest = ?',
    ),
    removeBlob: db.prepare<[Digest]>('DELETE FROM blobs WHERE digest = ?'),
    use: db.prepare(
      `UPDATE blobs SET used_at = @at, uses = min(@mostUses, uses + @count),
         priority = @inflation + min(@mostUses, uses + @count) * worth
       WHERE digest = @digest`,
    ),
    leastPriority: db.prepare<[], { least: number }>(
      'SELECT priority AS least FROM blobs WHERE pinned = 0 ORDER BY priority LIMIT 1',
    ),
    leastWorthy: db.prepare<[number, string, number], Victim>(
      `SELECT digest, size, priority FROM blobs WHERE pinned = 0 AND (priority, digest) > (?, ?)
       ORDER BY priority, digest LIMIT ?`,
    ),
    idleSince: db.prepare<[number, number], Victim>(
      `SELECT digest, size, priority FROM blobs WHERE used_at < ? AND pinned = 0 ORDER BY used_at LIMIT ?`,
    ),
    footprint: db.prepare<[], { total: number }>(
      `SELECT coalesce(sum(${footprintOfSize}), 0) AS total FROM blobs`,
    ),
    digestsWithPrefix: db.prepare<[string, string], { digest: Digest }>(
      'SELECT digest FROM blobs WHERE digest >= ? AND digest < ?',
    ),
    children: db.prepare<[Digest], Omit<Child, 'foreign'> & { foreign: number }>(
      'SELECT digest, size, kind, is_foreign AS "foreign" FROM children WHERE parent = ? ORDER BY position',
    ),
    heldChildren: db.prepare<[Digest, number, number], { digest: Digest }>(
      `SELECT children.digest FROM children JOIN blobs ON blobs.digest = children.digest
       WHERE parent = ? AND position >= ? AND position < ? ORDER BY position`,
    ),
    addChild: db.prepare(
      `INSERT INTO children VALUES (?, ?, ?, ?, ?, ?, EXISTS (SELECT 1 FROM blobs WHERE blobs.digest = ?))`,
    ),
    setHeld: db.prepare<[Digest]>('UPDATE children SET was_held = 1 WHERE digest = ? AND was_held = 0'),
    wasHeld: db.prepare<[Digest], object>('SELECT 1 FROM children WHERE digest = ? AND was_held = 1 LIMIT 1'),
    removeChildren: db.prepare<[Digest]>('DELETE FROM children WHERE parent = ?'),
    removeSomeChildren: db.prepare<[Digest, Digest, number]>(
      `DELETE FROM children WHERE parent = ?
         AND position > (SELECT max(position) FROM children WHERE parent = ?) - ?`,
    ),
    childAt: db.prepare<[Digest, number], object>('SELECT 1 FROM children WHERE parent = ? AND position = ?'),
    wideManifests: db.prepare<[number, string, number], WideManifest>(
      `SELECT digest, size, priority, used_at AS usedAt FROM blobs INDEXED BY blobs_wide
       WHERE size > 16000 AND media_type <> 'application/octet-stream' AND pinned = 0 AND (used_at, digest) > (?, ?)
       ORDER BY used_at, digest LIMIT ?`,
    ),
    sizeOfChild: db.prepare<[Digest], { size: number }>('SELECT size FROM children WHERE digest = ? LIMIT 1'),
    ingests: db.prepare<[], IngestRow>(
      'SELECT registry, digest, file, size, present, synced, boot, updated_at AS updatedAt FROM ingests',
    ),
    setIngest: db.prepare('INSERT OR REPLACE INTO ingests VALUES (?, ?, ?, ?, ?, ?, ?, ?)'),
    removeIngest: db.prepare<[string, Digest]>('DELETE FROM ingests WHERE registry = ? AND digest = ?'),
    link: db.prepare<[Digest, string, string], LinkRow>(
      `SELECT confirmed_at AS confirmedAt, media_type AS mediaType FROM links
       WHERE digest = ? AND registry = ? AND repo = ?`,
    ),
    addLink: db.prepare(
      `INSERT INTO links VALUES (?, ?, ?, ?, ?)
       ON CONFLICT DO UPDATE SET confirmed_at = max(confirmed_at, excluded.confirmed_at),
         media_type = coalesce(excluded.media_type, media_type)`,
    ),
    removeLink: db.prepare('DELETE FROM links WHERE digest = ? AND registry = ? AND repo = ?'),
    publicRegistries: db.prepare<[], { registry: string }>(
      `SELECT DISTINCT registry FROM links WHERE repo = ''`,
    ),
    removePublicLinks: db.prepare<[string]>(`DELETE FROM links WHERE registry = ? AND repo = ''`),
    removeLinks: db.prepare<[Digest]>('DELETE FROM links WHERE digest = ?'),
    tag: db.prepare<[string, string, string], Omit<TagRow, 'isUpstreamStale'> & { isUpstreamStale: number }>(
      `SELECT digest, size, media_type AS mediaType, checked_at AS checkedAt,
         coalesce(said_at, checked_at) AS saidAt, upstream_stale AS isUpstreamStale, previous FROM tags
       WHERE registry = ? AND repo = ? AND tag = ?`,
    ),
    setTag: db.prepare(
      `INSERT OR REPLACE INTO tags (registry, repo, tag, digest, size, media_type, checked_at, said_at, upstream_stale, previous)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    ),
    removeTag: db.prepare('DELETE FROM tags WHERE registry = ? AND repo = ? AND tag = ?'),
    list: db.prepare<[string, string, string], ListRow>(
      `SELECT digest, size, next, filters, checked_at AS checkedAt FROM lists
       WHERE registry = ? AND repo = ? AND page = ?`,
    ),
    listBody: db.prepare<[string, string, string], { body: Buffer | null }>(
      'SELECT body FROM lists WHERE registry = ? AND repo = ? AND page = ?',
    ),
    setList: db.prepare(
      `INSERT OR REPLACE INTO lists (registry, repo, page, digest, size, body, next, filters, checked_at, upstream)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    ),
    listsOfRepo: db.prepare<[string, string], { count: number }>(
      'SELECT count(*) AS count FROM lists WHERE registry = ? AND repo = ?',
    ),
    removeOldestListOf: db.prepare(
      `DELETE FROM lists WHERE rowid IN
         (SELECT rowid FROM lists WHERE registry = ? AND repo = ? ORDER BY digest IS NOT NULL, checked_at LIMIT ?)`,
    ),
    removeLists: db.prepare('DELETE FROM lists WHERE registry = ? AND repo = ? AND page GLOB ?'),
    removeListsOf: db.prepare<[string]>(`DELETE FROM lists WHERE registry || '/' || repo GLOB ?`),
    listsSize: db.prepare<[], { count: number; bytes: number }>(
      'SELECT count(*) AS count, total(size) AS bytes FROM lists',
    ),
    removeOldestList: db.prepare<[], { bytes: number }>(
      `DELETE FROM lists WHERE rowid =
         (SELECT rowid FROM lists
          WHERE upstream = (SELECT upstream FROM lists GROUP BY upstream ORDER BY total(size) + 500 * count(*) DESC LIMIT 1)
          ORDER BY checked_at LIMIT 1)
       RETURNING size AS bytes`,
    ),
    note: db.prepare<[string], { value: string }>('SELECT value FROM notes WHERE name = ?'),
    setNote: db.prepare('INSERT OR REPLACE INTO notes VALUES (?, ?)'),
    blobsAfter: db.prepare<[string, number], Descriptor>(
      'SELECT digest, size, media_type AS mediaType FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?',
    ),
    reposOf: db.prepare<[Digest], { registry: string; repo: string }>(
      `SELECT registry, repo FROM links WHERE digest = ? AND repo <> ''`,
    ),
    isPinned: db.prepare<[Digest], object>('SELECT 1 FROM blobs WHERE digest = ? AND pinned = 1'),
    parents: db.prepare<[Digest], { parent: Digest }>(
      'SELECT parent FROM children JOIN blobs ON blobs.digest = children.parent WHERE children.digest = ?',
    ),
    blobsOf: db.prepare<[string], Omit<Root, 'tag'>>(
      `SELECT registry, repo, digest FROM links WHERE repo <> '' AND registry || '/' || repo GLOB ?`,
    ),
    pins: db.prepare<[], { pattern: string }>('SELECT pattern FROM pins ORDER BY pattern'),
    addPin: db.prepare('INSERT OR IGNORE INTO pins VALUES (?, ?)'),
    removePin: db.prepare<[string]>('DELETE FROM pins WHERE pattern = ?'),
    pinned: db.prepare<[string, number], { digest: Digest }>(
      'SELECT digest FROM blobs WHERE pinned = 1 AND digest > ? ORDER BY digest LIMIT ?',
    ),
    setPinned: db.prepare<[number, Digest]>('UPDATE blobs SET pinned = ? WHERE digest = ?'),
    hasPinnedParent: db.prepare<[Digest], object>(
      `SELECT 1 FROM children JOIN blobs ON blobs.digest = children.parent
       WHERE children.digest = ? AND blobs.pinned = 1 LIMIT 1`,
    ),
    tagged: db.prepare<[string], Root>(
      `SELECT registry, repo, tag, digest FROM tags WHERE registry || '/' || repo GLOB ?`,
    ),
    taggedAs: db.prepare<[Digest, string], Root>(
      `SELECT registry, repo, tag, digest FROM tags WHERE digest = ? AND registry || '/' || repo GLOB ?`,
    ),
    tagsAfter: db.prepare<[string, string, string, number], Root>(
      `SELECT registry, repo, tag, digest FROM tags WHERE (registry, repo, tag) > (?, ?, ?)
       ORDER BY registry, repo, tag LIMIT ?`,
    ),
    linkedAfter: db.prepare<[string, string, string, number], Omit<Root, 'tag'>>(
      `SELECT registry, repo, links.digest FROM links CROSS JOIN blobs ON blobs.digest = links.digest
       WHERE (links.digest, registry, repo) > (?, ?, ?) AND repo <> '' AND blobs.media_type <> 'application/octet-stream'
       ORDER BY links.digest, registry, repo LIMIT ?`,
    ),
    linkedAs: db.prepare<[Digest, string], Omit<Root, 'tag'>>(
      `SELECT registry, repo, digest FROM links JOIN blobs USING (digest)
       WHERE links.digest = ? AND repo <> '' AND registry || '/' || repo GLOB ?
         AND blobs.media_type <> 'application/octet-stream'`,
    ),
    quota: db.prepare<[string, string], QuotaState>(
      `SELECT pull_limit AS "limit", remaining, window_ms AS windowMs, source, risen_at AS risenAt,
         observed_at AS observedAt, back_at AS backAt
       FROM quotas WHERE registry = ? AND account = ?`,
    ),
    setQuota: db.prepare('INSERT OR REPLACE INTO quotas VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)'),
    removeQuota: db.prepare<[string, string]>('DELETE FROM quotas WHERE registry = ? AND account = ?'),
    addToLedger: db.prepare<[LedgerRow]>(
      `INSERT INTO ledger VALUES (@day, @registry, @repo, @clientPulls, @upstreamPulls, @servedBytes, @fetchedBytes,
         @tokenCalls, @limited, @bridgedSeconds)
       ON CONFLICT DO UPDATE SET
         client_pulls = client_pulls + excluded.client_pulls,
         upstream_pulls = upstream_pulls + excluded.upstream_pulls,
         served_bytes = served_bytes + excluded.served_bytes,
         fetched_bytes = fetched_bytes + excluded.fetched_bytes,
         token_calls = token_calls + excluded.token_calls,
         limited = limited + excluded.limited,
         bridged_seconds = bridged_seconds + excluded.bridged_seconds`,
    ),
    pruneLedger: db.prepare<[number]>(
      `DELETE FROM ledger WHERE day < (SELECT day FROM (SELECT DISTINCT day FROM ledger ORDER BY day DESC LIMIT ?)
       ORDER BY day LIMIT 1)`,
    ),
    ledgerTotals: db.prepare<[], { registry: string } & Counts>(
      `SELECT registry, sum(client_pulls) AS clientPulls, sum(upstream_pulls) AS upstreamPulls,
         sum(served_bytes) AS servedBytes, sum(fetched_bytes) AS fetchedBytes, sum(token_calls) AS tokenCalls,
         sum(limited) AS limited,
         sum(iif(repo = '', bridged_seconds, 0)) AS bridgedSeconds
       FROM ledger GROUP BY registry`,
    ),
  };
}
