import { LRUCache } from 'lru-cache';
import type { Digest } from '../../oci/digest.ts';
import type { Repo } from '../../oci/repo.ts';
import type { Catalog } from '../../store/catalog/catalog.ts';
import { wholeRegistry } from '../../store/catalog/tables/links.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Provenance } from '../../upstream/responses.ts';
import type { Clock } from '../../util/clock.ts';
import { isFresh, isServableStale, type TagPolicy } from '../tags/freshness.ts';

const linkLifeMs = 24 * 60 * 60 * 1000;
const maxRemembered = 100_000;

/** The upstream's confirmation that a repo has a digest. */
interface Link {
  /** Milliseconds since the epoch; Infinity: the digest is public within its registry. */
  readonly confirmedAt: number;
  /** Media type under which the upstream serves the manifest in this repo; undefined for blobs. */
  readonly mediaType: string | undefined;
}

const noLink: Link = { confirmedAt: -Infinity, mediaType: undefined };

/**
 * Links grant repos access to digests. Content served to anonymous requests is public within its registry. Other
 * content is granted to each repo for which the upstream served or confirmed it, for 24 h.
 */
export class Links {
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #policy: () => TagPolicy;
  /** Cached links, so that a hit costs no catalog query. Deleting a blob also deletes its links. */
  readonly #cache = new LRUCache<string, Link>({ max: maxRemembered });

  constructor(catalog: Catalog, clock: Clock, log: Logger, policy: () => TagPolicy) {
    this.#catalog = catalog;
    this.#clock = clock;
    this.#log = log;
    this.#policy = policy;
  }

  /** Records that the upstream served or confirmed the digest for the repo; `mediaType`: for a manifest. */
  confirm(repo: Repo, digest: Digest, { isPublic, mediaType }: Provenance & { mediaType?: string }): void {
    const now = this.#clock.now();
    const type = mediaType ?? this.typeOf(repo, digest);
    this.#cache.set(keyOf(repo, digest), { confirmedAt: isPublic ? Infinity : now, mediaType: type });
    this.#write(repo, digest, () => {
      this.#catalog.links.add(digest, repo, { isPublic, mediaType: type, now });
    });
  }

  revoke(repo: Repo, digest: Digest): void {
    this.#cache.set(keyOf(repo, digest), noLink);
    this.#write(repo, digest, () => this.#catalog.links.remove(digest, repo.registry, repo.name));
  }

  /** Media type under which the upstream serves this manifest in this repo; undefined if unknown. */
  typeOf(repo: Repo, digest: Digest): string | undefined {
    return this.#link(repo, digest).mediaType;
  }

  /** Removes public links of registries that have become private: each repo must be confirmed again. */
  withdraw(isPrivate: (registry: string) => boolean): void {
    const registries = this.#catalog.links.publicRegistries().filter(isPrivate);
    if (registries.length === 0) return;
    for (const registry of registries) this.#catalog.links.removePublic(registry);
    this.#cache.clear();
    this.#log.info({ registries }, 'links: public links of private registries removed');
  }

  grants(repo: Repo, digest: Digest): boolean {
    return isFresh(this.#confirmedAt(repo, digest), this.#clock.now(), linkLifeMs);
  }

  /** Whether an expired link still counts, by `staleIfError`, while the upstream cannot be asked. */
  grantsStale(repo: Repo, digest: Digest): boolean {
    return isServableStale(this.#confirmedAt(repo, digest), this.#clock.now(), this.#policy());
  }

  #write(repo: Repo, digest: Digest, write: () => void): void {
    try {
      write();
    } catch (error) {
      this.#log.warn({ err: error, repo: repo.key, digest }, 'link not written');
    }
  }

  #confirmedAt(repo: Repo, digest: Digest): number {
    const { confirmedAt } = this.#link(repo, digest);
    return confirmedAt === Infinity ? this.#clock.now() : confirmedAt;
  }

  #link(repo: Repo, digest: Digest): Link {
    const key = keyOf(repo, digest);
    const cached = this.#cache.get(key);
    if (cached) return cached;
    const { registry, name } = repo;
    const isPublic = this.#catalog.links.get(digest, registry, wholeRegistry) !== undefined;
    const own = this.#catalog.links.get(digest, registry, name);
    if (!isPublic && !own) return noLink;
    const confirmedAt = isPublic ? Infinity : (own?.confirmedAt ?? -Infinity);
    const link = { confirmedAt, mediaType: own?.mediaType ?? undefined };
    this.#cache.set(key, link);
    return link;
  }
}

function keyOf(repo: Repo, digest: Digest): string {
  return `${repo.key}@${digest}`;
}
