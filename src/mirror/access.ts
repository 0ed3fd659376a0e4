import { LRUCache } from 'lru-cache';
import type { Digest } from '../oci/digest.ts';
import type { Repo } from '../oci/repo.ts';
import { everywhere, type Catalog } from '../store/catalog.ts';
import type { Given } from '../upstream/answers.ts';
import type { Clock } from '../util/clock.ts';
import type { Logger } from '../util/log.ts';
import { isFresh, isServableStale, type TagPolicy } from './freshness.ts';

const linkLifeMs = 24 * 60 * 60 * 1000;
const maxRemembered = 100_000;

/**
 * Who may have what: a digest is no authorisation. Content that came anonymously is public within its registry; other
 * content belongs to the repos for which the upstream has given or confirmed it, for 24 h at a time.
 */
export class Access {
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #policy: TagPolicy;
  /** The catalog's answers, so that a hit costs no query. Removing a blob removes its links with it. */
  readonly #granted = new LRUCache<string, number>({ max: maxRemembered });

  constructor(catalog: Catalog, clock: Clock, log: Logger, policy: TagPolicy) {
    this.#catalog = catalog;
    this.#clock = clock;
    this.#log = log;
    this.#policy = policy;
  }

  /** The upstream has given the digest for the repo, or confirmed that it is there. */
  confirm(repo: Repo, digest: Digest, { isPublic }: Given): void {
    const now = this.#clock.now();
    this.#granted.set(`${repo.key}@${digest}`, isPublic ? Infinity : now);
    this.#write(repo, digest, () => {
      this.#catalog.addLink(digest, repo, isPublic, now);
    });
  }

  revoke(repo: Repo, digest: Digest): void {
    this.#granted.delete(`${repo.key}@${digest}`);
    this.#write(repo, digest, () => this.#catalog.removeLink(digest, repo.registry, repo.name));
  }

  grants(repo: Repo, digest: Digest): boolean {
    return isFresh(this.#confirmedAt(repo, digest), this.#clock.now(), linkLifeMs);
  }

  /** As it was: enough while the upstream cannot be asked. */
  grantedOnce(repo: Repo, digest: Digest): boolean {
    return isServableStale(this.#confirmedAt(repo, digest), this.#clock.now(), this.#policy);
  }

  #write(repo: Repo, digest: Digest, write: () => void): void {
    try {
      write();
    } catch (error) {
      this.#log.warn({ err: error, repo: repo.key, digest }, 'a link could not be written');
    }
  }

  #confirmedAt(repo: Repo, digest: Digest): number {
    const key = `${repo.key}@${digest}`;
    const known = this.#granted.get(key);
    if (known !== undefined) return known === Infinity ? this.#clock.now() : known;
    if (this.#catalog.link(digest, repo.registry, everywhere) !== undefined) {
      this.#granted.set(key, Infinity);
      return this.#clock.now();
    }
    const at = this.#catalog.link(digest, repo.registry, repo.name);
    if (at === undefined) return -Infinity;
    this.#granted.set(key, at);
    return at;
  }
}
