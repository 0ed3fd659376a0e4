import { LRUCache } from 'lru-cache';
import { createRepo, type Repo } from '../oci/repo.ts';
import type { Place } from '../oci/route.ts';
import type { PullFigures } from '../upstream/accounts/account-pool.ts';
import type { RegistryClient } from '../upstream/registry-client.ts';
import { MirrorError } from '../util/errors.ts';
import type { Slots } from '../util/slots.ts';
import type { Pool } from './fill/connections.ts';
import type { RegistryPattern } from './registry-pattern.ts';

/** A registry that we pull from. */
export interface Upstream {
  readonly client: RegistryClient;
  /** Blob bodies from it at once. */
  readonly pool: Pool;
  /** And past the store: these are held by clients, who may be slow. */
  readonly relaySlots: Slots;
  /** What it gives is not for everybody, though nobody logs in: it knows us by a certificate or an address. */
  readonly isPrivate: boolean;
  /** How long what it says of a tag is believed. */
  readonly ttlOf: (repo: Repo, tag: string) => number;
}

/** One that is configured by its name. */
export interface NamedUpstream extends Upstream {
  readonly name: string;
  /** Other names for the same thing. */
  readonly aliases: readonly string[];
  /** Virtual hosts that mean it. */
  readonly hosts: readonly string[];
}

/** Many registries that are configured as one, each at its own name. */
export interface UpstreamFamily {
  /** The pattern as it is configured. */
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

/** How a client says which registry it means. */
export interface Said extends Pick<Place, 'ns' | 'prefix'> {
  /** The `Host` header. */
  readonly host: string | undefined;
}

type Registry = Pick<Repo, 'registry' | 'upstream'>;

/** Members of a family that are known at once: clients choose them. */
const maxMembers = 500;

/** All upstreams, by the names that clients may call them. */
export class Upstreams {
  #named: readonly NamedUpstream[] = [];
  #families: ReadonlyMap<UpstreamFamily, LRUCache<string, Upstream>> = new Map();
  #byName = new Map<string, NamedUpstream>();
  #byHost = new Map<string, NamedUpstream>();
  #default = '';
  /** Fills that began before the configuration changed go on with these. */
  readonly #retired = new Set<WeakRef<RegistryClient>>();

  constructor(options: UpstreamsOptions) {
    this.replace(options);
  }

  /** What runs goes on with what it has; whoever asks from now on gets these. */
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
   * The repo that a client means by `name`. The first that says it counts: `ns`, what stands before `/v2/`, the first
   * component of the name, the virtual host; else it is the default upstream. Throws `registry-unknown` for a registry
   * that is not configured, before anything is looked up, and `name-invalid`.
   */
  repo(name: string, said: Said): Repo {
    const slash = name.indexOf('/');
    const component = slash < 0 ? '' : name.slice(0, slash);
    const first = component === '' ? undefined : this.#find(component);
    const chosen = this.chosen(said);
    const { registry, upstream } = chosen ?? first ?? this.#ofHost(said.host);
    // Some clients name it twice: BuildKit by `ns` and by the path of its mirror. An alias may be a namespace there too.
    const isTwice = chosen === undefined || /[.:]/.test(component);
    return createRepo(
      registry,
      first?.registry === registry && isTwice ? name.slice(slash + 1) : name,
      upstream,
    );
  }

  /** What is named beside the repo. Throws `registry-unknown`. */
  chosen({ ns, prefix }: Pick<Said, 'ns' | 'prefix'>): Registry | undefined {
    const before = prefix === undefined ? undefined : this.#expect(prefix);
    return ns === undefined ? before : this.#expect(ns);
  }

  /** A repo of which only the names are known. Throws `registry-unknown`. */
  repoNamed(registry: string, name: string): Repo {
    return createRepo(registry, name, this.#expect(registry).upstream);
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

  /** Whether the registry is configured, and private. */
  isPrivate(registry: string): boolean {
    const named = this.#byName.get(registry);
    if (named) return named.isPrivate;
    return [...this.#families.keys()].find(({ pattern }) => pattern.matches(registry))?.isPrivate ?? false;
  }

  /** The pulls that are left for a repo, as its upstream's headers would say it to one client for all of ours. */
  pullsLeft(repo: Repo): PullFigures | undefined {
    return this.of(repo).client.accounts.pulls;
  }

  named(registry: string): NamedUpstream | undefined {
    return this.#named.find(({ name }) => name === registry);
  }

  family(pattern: string): UpstreamFamily | undefined {
    return [...this.#families.keys()].find(({ name }) => name === pattern);
  }

  /** Those that are configured by name. */
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

  #expect(name: string): Registry {
    const found = this.#find(name);
    if (found) return found;
    throw unknownRegistry(name);
  }

  /** By name or alias, or by a pattern that covers it: nothing is made for it yet. */
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
    return this.#hostOrName(full) ?? this.#hostOrName(bare) ?? this.#expect(this.#default);
  }

  #hostOrName(text: string): Registry | undefined {
    return this.#find(this.#byHost.get(text)?.name ?? text);
  }
}

function unknownRegistry(name: string): MirrorError {
  const shown = JSON.stringify(name.slice(0, 150));
  return new MirrorError('registry-unknown', `registry ${shown}: not among the configured upstreams`);
}
