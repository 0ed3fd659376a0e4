import { LRUCache } from 'lru-cache';
import { createRepo, type Repo } from '../oci/repo.ts';
import type { Place } from '../oci/route.ts';
import type { RegistryClient } from '../upstream/registry-client.ts';
import { MirrorError } from '../util/errors.ts';
import type { Slots } from '../util/slots.ts';
import type { Pool } from './connections.ts';
import type { RegistryPattern } from './registry-pattern.ts';

/** A registry that we pull from. */
export interface Upstream {
  /** The name or pattern that it is configured by. */
  readonly name: string;
  readonly client: RegistryClient;
  /** Blob bodies from it at once. */
  readonly pool: Pool;
  /** And past the store: these are held by clients, who may be slow. */
  readonly relaySlots: Slots;
  /** How long what it says of a tag is believed. */
  readonly ttlOf: (repo: Repo, tag: string) => number;
}

/** One that is configured by its name. */
export interface NamedUpstream extends Upstream {
  /** Other names for the same thing. */
  readonly aliases: readonly string[];
  /** Virtual hosts that mean it. */
  readonly hosts: readonly string[];
}

/** Many registries that are configured as one. */
export interface UpstreamFamily {
  readonly pattern: RegistryPattern;
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

/** Members of families that are known at once: clients choose them. */
const maxMembers = 200;

/** All upstreams, by the names that clients may call them. */
export class Upstreams {
  #named: readonly NamedUpstream[] = [];
  #families: readonly UpstreamFamily[] = [];
  #byName = new Map<string, Upstream>();
  #byHost = new Map<string, Upstream>();
  #default: Upstream | undefined;
  readonly #members = new LRUCache<string, Upstream>({ max: maxMembers });
  /** Fills that began before the configuration changed go on with these. */
  readonly #retired: Upstream[] = [];

  constructor(options: UpstreamsOptions) {
    this.replace(options);
  }

  /** What runs goes on with what it has; whoever asks from now on gets these. */
  replace({ named, families, defaultUpstream }: UpstreamsOptions): void {
    this.#retired.push(...this.#members.values(), ...this.#named.filter((each) => !named.includes(each)));
    this.#named = named;
    this.#families = families;
    this.#members.clear();
    this.#byName = new Map(
      named.flatMap((upstream) => [upstream.name, ...upstream.aliases].map((name) => [name, upstream])),
    );
    this.#byHost = new Map(
      named.flatMap((upstream) =>
        [...upstream.hosts, upstream.name, ...upstream.aliases].map((name) => [name, upstream]),
      ),
    );
    this.#default = this.#byName.get(defaultUpstream);
  }

  /**
   * The repo that a client means by `name`. The first that says it counts: `ns`, what stands before `/v2/`, the first
   * component of the name, the virtual host; else it is the default upstream. Throws `registry-unknown` for a registry
   * that is not configured, before anything is looked up, and `name-invalid`.
   */
  repo(name: string, said: Said): Repo {
    const slash = name.indexOf('/');
    const first = slash < 0 ? undefined : this.find(name.slice(0, slash));
    const upstream = this.chosen(said) ?? first ?? this.#ofHost(said.host) ?? this.#default;
    if (!upstream) throw new Error('there is no default upstream');
    // Some clients name it twice: BuildKit by `ns` and by the path of its mirror.
    const rest = upstream === first ? name.slice(slash + 1) : name;
    return createRepo(upstream.client.registry, rest, upstream.name);
  }

  /** The one that is named beside the repo. Throws `registry-unknown`. */
  chosen({ ns, prefix }: Pick<Said, 'ns' | 'prefix'>): Upstream | undefined {
    const named = ns ?? prefix;
    if (named === undefined) return undefined;
    const upstream = this.find(named);
    if (upstream) return upstream;
    throw new MirrorError(
      'registry-unknown',
      `registry ${JSON.stringify(named.slice(0, 150))}: not among the configured upstreams`,
    );
  }

  of(repo: Repo): Upstream {
    const upstream = this.find(repo.registry);
    if (upstream) return upstream;
    throw new MirrorError(
      'registry-unknown',
      `registry ${repo.registry}: not among the configured upstreams`,
    );
  }

  /** By name or alias, or by a pattern that covers it. */
  find(name: string): Upstream | undefined {
    const known = this.#byName.get(name) ?? this.#members.get(name);
    if (known) return known;
    const member = this.#families.find(({ pattern }) => pattern.matches(name))?.create(name);
    if (member) this.#members.set(name, member);
    return member;
  }

  named(registry: string): NamedUpstream | undefined {
    return this.#named.find(({ name }) => name === registry);
  }

  /** Those that are configured by name. */
  get all(): readonly RegistryClient[] {
    return this.#named.map(({ client }) => client);
  }

  async close(): Promise<void> {
    const all = [...this.#named, ...this.#members.values(), ...this.#retired];
    await Promise.all(all.map(({ client }) => client.close()));
  }

  #ofHost(host: string | undefined): Upstream | undefined {
    if (host === undefined) return undefined;
    const full = host.toLowerCase();
    return this.#byHost.get(full) ?? this.#byHost.get(full.replace(/:\d+$/, ''));
  }
}
