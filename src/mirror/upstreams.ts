import { LRUCache } from 'lru-cache';
import { createRepo, type Repo } from '../oci/repo.ts';
import type { Place } from '../oci/route.ts';
import type { PullFigures } from '../upstream/accounts/account-pool.ts';
import type { RegistryClient } from '../upstream/registry-client.ts';
import { MirrorError } from '../util/errors.ts';
import type { Slots } from '../util/slots.ts';
import type { Pool } from './fill/connections.ts';
import type { RegistryPattern } from './registry-pattern.ts';

/** A registry to pull from. */
export interface Upstream {
  readonly client: RegistryClient;
  /** Limits parallel blob bodies. */
  readonly pool: Pool;
  /** Limits parallel relays past the store, which slow clients can hold. */
  readonly relaySlots: Slots;
  /** The upstream knows the mirror by certificate or address, so even anonymous answers are private. */
  readonly isPrivate: boolean;
  /** TTL in ms of a tag. */
  readonly ttlOf: (repo: Repo, tag: string) => number;
}

/** An upstream configured by name. */
export interface NamedUpstream extends Upstream {
  readonly name: string;
  /** Other names of the same registry. */
  readonly aliases: readonly string[];
  /** Virtual hosts that select it. */
  readonly hosts: readonly string[];
}

/** Registries configured by one pattern, each under its own name. */
export interface UpstreamFamily {
  /** The configured pattern. */
  readonly name: string;
  readonly pattern: RegistryPattern;
  readonly isPrivate: boolean;
  readonly create: (registry: string) => Upstream;
}

export interface UpstreamsOptions {
  readonly named: readonly NamedUpstream[];
  readonly families: readonly UpstreamFamily[];
  readonly defaultUpstream: string;
}

/** The parts of a request that can name the registry. */
export interface RegistryHint extends Pick<Place, 'ns' | 'prefix'> {
  /** The `Host` header. */
  readonly host: string | undefined;
}

type Registry = Pick<Repo, 'registry' | 'upstream'>;

/** Members of a family kept at once; clients choose their names. */
const maxMembers = 500;

/** All upstreams, by name, alias, pattern and virtual host. */
export class Upstreams {
  #named: readonly NamedUpstream[] = [];
  #families: ReadonlyMap<UpstreamFamily, LRUCache<string, Upstream>> = new Map();
  #byName = new Map<string, NamedUpstream>();
  #byHost = new Map<string, NamedUpstream>();
  #default = '';
  /** Clients of removed upstreams, still used by running fills. */
  readonly #retired = new Set<WeakRef<RegistryClient>>();

  constructor(options: UpstreamsOptions) {
    this.replace(options);
  }

  /** Replaces the configuration. Running requests keep their upstreams; new ones use these. */
  replace({ named, families, defaultUpstream }: UpstreamsOptions): void {
    for (const each of this.#named) if (!named.includes(each)) this.#retire(each);
    const before = this.#families;
    for (const [family, members] of before) if (!families.includes(family)) members.clear();
    this.#named = named;
    this.#families = new Map(families.map((family) => [family, before.get(family) ?? this.#members()]));
    this.#byName = new Map(
      named.flatMap((upstream) => [upstream.name, ...upstream.aliases].map((name) => [name, upstream])),
    );
    this.#byHost = new Map(named.flatMap((upstream) => upstream.hosts.map((host) => [host, upstream])));
    this.#default = defaultUpstream;
  }

  /**
   * The repo that a client means by `name`. The first of these names the registry: `ns`, the path before `/v2/`, the
   * first component of `name`, the virtual host, the default upstream. Throws `name-invalid`, and `registry-unknown`
   * for a registry that is not configured, without any DNS lookup.
   */
  repo(name: string, hint: RegistryHint): Repo {
    const slash = name.indexOf('/');
    const component = slash < 0 ? '' : name.slice(0, slash);
    const first = component === '' ? undefined : this.#find(component);
    const chosen = this.registryNamedBy(hint);
    const { registry, upstream } = chosen ?? first ?? this.#ofHost(hint.host);
    // Some clients name the registry twice: BuildKit by `ns` and in the mirror's path. An alias without a dot may also
    // be a namespace.
    const isNamedTwice = chosen === undefined || /[.:]/.test(component);
    return createRepo(
      registry,
      first?.registry === registry && isNamedTwice ? name.slice(slash + 1) : name,
      upstream,
    );
  }

  /** The registry named by `ns` or prefix. Throws `registry-unknown`. */
  registryNamedBy({ ns, prefix }: Pick<RegistryHint, 'ns' | 'prefix'>): Registry | undefined {
    const byPrefix = prefix === undefined ? undefined : this.#require(prefix);
    return ns === undefined ? byPrefix : this.#require(ns);
  }

  /** A repo by registry and name. Throws `registry-unknown`. */
  repoNamed(registry: string, name: string): Repo {
    return createRepo(registry, name, this.#require(registry).upstream);
  }

  of({ registry }: Pick<Repo, 'registry'>): Upstream {
    const named = this.#byName.get(registry);
    if (named) return named;
    for (const [family, members] of this.#families) {
      if (!family.pattern.matches(registry)) continue;
      const member = members.get(registry) ?? family.create(registry);
      members.set(registry, member);
      return member;
    }
    throw unknownRegistry(registry);
  }

  /** Whether the registry is configured as private. */
  isPrivate(registry: string): boolean {
    const named = this.#byName.get(registry);
    if (named) return named.isPrivate;
    return [...this.#families.keys()].find(({ pattern }) => pattern.matches(registry))?.isPrivate ?? false;
  }

  /** Pull limit and pulls left for a repo, summed over all accounts. */
  pullsLeft(repo: Repo): PullFigures | undefined {
    return this.of(repo).client.accounts.pulls;
  }

  named(registry: string): NamedUpstream | undefined {
    return this.#named.find(({ name }) => name === registry);
  }

  family(pattern: string): UpstreamFamily | undefined {
    return [...this.#families.keys()].find(({ name }) => name === pattern);
  }

  /** Clients of the upstreams configured by name. */
  get all(): readonly RegistryClient[] {
    return this.#named.map(({ client }) => client);
  }

  async close(): Promise<void> {
    for (const members of this.#families.values()) members.clear();
    const retired = [...this.#retired].flatMap((each) => each.deref() ?? []);
    await Promise.all([...this.all, ...retired].map((client) => client.close()));
  }

  #members(): LRUCache<string, Upstream> {
    return new LRUCache({
      max: maxMembers,
      dispose: (member, _registry, reason) => {
        if (reason !== 'set') this.#retire(member);
      },
    });
  }

  #retire({ client }: Upstream): void {
    for (const each of this.#retired) if (!each.deref()) this.#retired.delete(each);
    this.#retired.add(new WeakRef(client));
  }

  #require(name: string): Registry {
    const found = this.#find(name);
    if (found) return found;
    throw unknownRegistry(name);
  }

  /** By name, alias or pattern; creates no client. */
  #find(name: string): Registry | undefined {
    const known = this.#byName.get(name);
    if (known) return { registry: known.name, upstream: known.name };
    for (const family of this.#families.keys())
      if (family.pattern.matches(name)) return { registry: name, upstream: family.name };
    return undefined;
  }

  #ofHost(host: string | undefined): Registry {
    const full = host?.toLowerCase() ?? '';
    const bare = full.replace(/:\d+$/, '');
    return this.#hostOrName(full) ?? this.#hostOrName(bare) ?? this.#require(this.#default);
  }

  #hostOrName(text: string): Registry | undefined {
    return this.#find(this.#byHost.get(text)?.name ?? text);
  }
}

function unknownRegistry(name: string): MirrorError {
  const shown = JSON.stringify(name.slice(0, 150));
  return new MirrorError('registry-unknown', `registry ${shown}: not among the configured upstreams`);
}
