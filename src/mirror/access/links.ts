import { LRUCache } from 'lru-cache';
import type { Digest } from '../../oci/digest.ts';
import type { Repo } from '../../oci/repo.ts';
import type { Catalog } from '../../store/catalog/catalog.ts';
import { everywhere } from '../../store/catalog/tables/links.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Provenance } from '../../upstream/answers.ts';
import type { Clock } from '../../util/clock.ts';
import { isFresh, isServableStale, type TagPolicy } from '../tags/freshness.ts';

const linkLifeMs = 24 * 60 * 60 * 1000;
const maxRemembered = 100_000;

/** What the upstream has said of a digest in a repo. */
interface Link {
  /** Milliseconds since the epoch; Infinity: it is public within its registry. */
  readonly confirmedAt: number;
  /** As what it was given for this repo, if it is a manifest. */
  readonly mediaType: string | undefined;
}

const noLink: Link = { confirmedAt: -Infinity, mediaType: undefined };

/**
 * Who may have what: a digest is no authorisation. Content that came anonymously is public within its registry; other
 * content belongs to the repos for which the upstream has given or confirmed it, for 24 h at a time.
 */
export class Access {
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #policy: () => TagPolicy;
  /** The catalog's answers, so that a hit costs no query. Removing a blob removes its links with it. */
  readonly #links = new LRUCache<string, Link>({ max: maxRemembered });

  constructor(catalog: Catalog, clock: Clock, log: Logger, policy: () => TagPolicy) {
    this.#catalog = catalog;
    this.#clock = clock;
    this.#log = log;
    this.#policy = policy;
  }

  /** The upstream has given the digest for the repo, or confirmed that it is there; a manifest as `mediaType`. */
  confirm(repo: Repo, digest: Digest, { isPublic, mediaType }: Provenance & { mediaType?: string }): void {
    const now = this.#clock.now();
    const type = mediaType ?? this.typeOf(repo, digest);
    this.#links.set(keyOf(repo, digest), { confirmedAt: isPublic ? Infinity : now, mediaType: type });
    this.#write(repo, digest, () => {
      this.#catalog.links.add(digest, repo, { isPublic, mediaType: type, now });
    });
  }

  revoke(repo: Repo, digest: Digest): void {
    this.#links.set(keyOf(repo, digest), noLink);
    this.#write(repo, digest, () => this.#catalog.links.remove(digest, repo.registry, repo.name));
  }

  /** As what the upstream has given a manifest for this repo; undefined: it has not. */
  typeOf(repo: Repo, digest: Digest): string | undefined {
    return this.#link(repo, digest).mediaType;
  }

  /** Registries may have become private: what was public within them is to be confirmed anew, repo by repo. */
  withdraw(isPrivate: (registry: string) => boolean): void {
    const registries = this.#catalog.links.publicRegistries().filter(isPrivate);
    if (registries.length === 0) return;
    for (const registry of registries) this.#catalog.links.removePublic(registry);
    this.#links.clear();
    this.#log.info({ registries }, 'links: content of private registries is no longer public within them');
  }

  grants(repo: Repo, digest: Digest): boolean {
    return isFresh(this.#confirmedAt(repo, digest), this.#clock.now(), linkLifeMs);
  }

  /** As it was: enough while the upstream cannot be asked. */
  grantedOnce(repo: Repo, digest: Digest): boolean {
    return isServableStale(this.#confirmedAt(repo, digest), this.#clock.now(), this.#policy());
  }

  #write(repo: Repo, digest: Digest, write: () => void): void {
    try {
      write();
    } catch (error) {
      this.#log.warn({ err: error, repo: repo.key, digest }, 'a link could not be written');
    }
  }

  #confirmedAt(repo: Repo, digest: Digest): number {
    const { confirmedAt } = this.#link(repo, digest);
    return confirmedAt === Infinity ? this.#clock.now() : confirmedAt;
  }

  #link(repo: Repo, digest: Digest): Link {
    const key = keyOf(repo, digest);
    const known = this.#links.get(key);
    if (known) return known;
    const { registry, name } = repo;
    const isPublic = this.#catalog.links.get(digest, registry, everywhere) !== undefined;
    const own = this.#catalog.links.get(digest, registry, name);
    if (!isPublic && !own) return noLink;
    const confirmedAt = isPublic ? Infinity : (own?.confirmedAt ?? -Infinity);
    const link = { confirmedAt, mediaType: own?.mediaType ?? undefined };
    this.#links.set(key, link);
    return link;
  }
}

function keyOf(repo: Repo, digest: Digest): string {
  return `${repo.key}@${digest}`;
}
