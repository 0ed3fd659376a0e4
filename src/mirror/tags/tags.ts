import { LRUCache } from 'lru-cache';
import type { Descriptor } from '../../oci/content.ts';
import type { Repo } from '../../oci/repo.ts';
import { subjectOf } from '../../oci/signatures.ts';
import type { Catalog } from '../../store/catalog/catalog.ts';
import type { TagRow } from '../../store/catalog/tables/tags.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { AnswerAge } from '../../upstream/registry-client.ts';
import type { Clock } from '../../util/clock.ts';

const maxRemembered = 20_000;

/** Tag rows: what each tag points to, as the upstream last said. Those in use are in memory, all are in the catalog. */
export class Tags {
  readonly #catalog: Catalog;
  readonly #hasManifest: (prefix: string) => boolean;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #rows = new LRUCache<string, TagRow>({ max: maxRemembered });

  /** `holds`: whether a manifest whose digest starts with the prefix can be served. */
  constructor(catalog: Catalog, clock: Clock, log: Logger, hasManifest: (prefix: string) => boolean) {
    this.#catalog = catalog;
    this.#hasManifest = hasManifest;
    this.#clock = clock;
    this.#log = log;
  }

  get(repo: Repo, tag: string): TagRow | undefined {
    const key = `${repo.key}:${tag}`;
    const cached = this.#rows.get(key);
    if (cached) return cached;
    const row = this.#catalog.tags.get(repo, tag);
    if (row) this.#rows.set(key, row);
    return row;
  }

  /** Records the upstream's answer that the tag points to this manifest. */
  set(repo: Repo, tag: string, { digest, size, mediaType, ageMs, isStale }: Descriptor & AnswerAge): TagRow {
    const before = this.get(repo, tag);
    // `previous` is the last digest that can be served, however often the tag has moved since.
    const isReplaced = before !== undefined && before.digest !== digest && this.#isStored(before.digest);
    const previous = isReplaced ? before.digest : (before?.previous ?? null);
    const checkedAt = this.#clock.now();
    const row = {
      ...{ digest, size, mediaType, checkedAt, previous },
      registryCheckedAt: checkedAt - ageMs,
      isUpstreamStale: isStale,
    };
    this.#write(repo, tag, () => this.#catalog.tags.set(repo, tag, row, before?.digest !== digest));
    // After the catalog: its notice of a moved tag calls `forget`.
    this.#rows.set(`${repo.key}:${tag}`, row);
    return row;
  }

  /** Drops the cached row of a tag that changed in the catalog. */
  forget(key: string): void {
    this.#rows.delete(key);
  }

  remove(repo: Repo, tag: string): void {
    this.#rows.delete(`${repo.key}:${tag}`);
    this.#write(repo, tag, () => this.#catalog.tags.remove(repo, tag));
  }

  /**
   * Records that the upstream has no such tag. Persisted only for tags of the referrers tag schema and the like, if
   * their subject is stored: clients request these on every pull and need a definite 404.
   */
  recordAbsent(repo: Repo, tag: string): void {
    const subject = subjectOf(tag);
    if (subject === undefined || !this.#isStored(subject)) return;
    this.#write(repo, tag, () => this.#catalog.lists.setAbsent(repo, absenceKey(tag), this.#clock.now()));
  }

  /**
   * When the upstream last answered that the tag does not exist, in ms since the epoch; undefined if it has served the
   * tag since.
   */
  absentSince(repo: Repo, tag: string): number | undefined {
    if (subjectOf(tag) === undefined || this.get(repo, tag)) return undefined;
    return this.#catalog.lists.get(repo, absenceKey(tag))?.checkedAt;
  }

  #isStored(prefix: string): boolean {
    try {
      return this.#hasManifest(prefix);
    } catch {
      // The request itself reports an unreadable catalog.
      return false;
    }
  }

  #write(repo: Repo, tag: string, write: () => void): void {
    try {
      write();
    } catch (error) {
      this.#log.warn({ err: error, repo: repo.key, tag }, 'tag not written');
    }
  }
}

/** Key among the catalog's lists, where absence is stored. */
function absenceKey(tag: string): string {
  return `manifests/${tag}`;
}
