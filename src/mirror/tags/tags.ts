import { LRUCache } from 'lru-cache';
import type { Descriptor } from '../../oci/content.ts';
import type { Repo } from '../../oci/repo.ts';
import { subjectOf } from '../../oci/signatures.ts';
import type { Catalog } from '../../store/catalog/catalog.ts';
import type { TagRow } from '../../store/catalog/tables/tags.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Aged } from '../../upstream/registry-client.ts';
import type { Clock } from '../../util/clock.ts';

const maxRemembered = 20_000;

/** What the tags point to, as the upstream last said: in memory for those in use, in the catalog for all. */
export class Tags {
  readonly #catalog: Catalog;
  readonly #holds: (prefix: string) => boolean;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #rows = new LRUCache<string, TagRow>({ max: maxRemembered });

  /** `holds`: whether a manifest can be served whose digest begins so. */
  constructor(catalog: Catalog, clock: Clock, log: Logger, holds: (prefix: string) => boolean) {
    this.#catalog = catalog;
    this.#holds = holds;
    this.#clock = clock;
    this.#log = log;
  }

  get(repo: Repo, tag: string): TagRow | undefined {
    const key = `${repo.key}:${tag}`;
    const known = this.#rows.get(key);
    if (known) return known;
    const row = this.#catalog.tags.get(repo, tag);
    if (row) this.#rows.set(key, row);
    return row;
  }

  /** The upstream says now that the tag points there. */
  set(repo: Repo, tag: string, { digest, size, mediaType, ageMs, isStale }: Descriptor & Aged): TagRow {
    const before = this.get(repo, tag);
    // The last one that can be served, however often the tag has moved since.
    const isNews = before !== undefined && before.digest !== digest && this.#isHeld(before.digest);
    const previous = isNews ? before.digest : (before?.previous ?? null);
    const checkedAt = this.#clock.now();
    const row = {
      ...{ digest, size, mediaType, checkedAt, previous },
      saidAt: checkedAt - ageMs,
      isUpstreamStale: isStale,
    };
    this.#write(repo, tag, () => this.#catalog.tags.set(repo, tag, row, before?.digest !== digest));
    // Only now: the catalog tells of a tag that has moved, and it is forgotten.
    this.#rows.set(`${repo.key}:${tag}`, row);
    return row;
  }

  /** It was changed in the catalog. */
  forget(key: string): void {
    this.#rows.delete(key);
  }

  remove(repo: Repo, tag: string): void {
    this.#rows.delete(`${repo.key}:${tag}`);
    this.#write(repo, tag, () => this.#catalog.tags.remove(repo, tag));
  }

  /**
   * The upstream says that there is no such tag. Of tags that would hold what belongs to an image that is held, this is
   * written down: clients ask for them on every pull, and do without what is not there, but not without an answer.
   */
  absent(repo: Repo, tag: string): void {
    const subject = subjectOf(tag);
    if (subject === undefined || !this.#isHeld(subject)) return;
    this.#write(repo, tag, () => this.#catalog.lists.setAbsent(repo, pageOf(tag), this.#clock.now()));
  }

  /** When the upstream last said so of a tag that it has not given since. */
  absentSince(repo: Repo, tag: string): number | undefined {
    if (subjectOf(tag) === undefined || this.get(repo, tag)) return undefined;
    return this.#catalog.lists.get(repo, pageOf(tag))?.checkedAt;
  }

  #isHeld(prefix: string): boolean {
    try {
      return this.#holds(prefix);
    } catch {
      // A catalog that cannot be read is told of by those who need it.
      return false;
    }
  }

  #write(repo: Repo, tag: string, write: () => void): void {
    try {
      write();
    } catch (error) {
      this.#log.warn({ err: error, repo: repo.key, tag }, 'a tag could not be written');
    }
  }
}

/** It stands in place of a list of referrers. */
function pageOf(tag: string): string {
  return `manifests/${tag}`;
}
