import { createRepo, type Repo } from '../oci/repo.ts';
import type { RegistryClient } from '../upstream/registry-client.ts';
import { MirrorError } from '../util/errors.ts';
import type { Slots } from '../util/slots.ts';
import type { Pool } from './connections.ts';

/** A configured registry that we pull from. */
export interface Upstream {
  /** Other names for the same thing. */
  readonly aliases: readonly string[];
  readonly client: RegistryClient;
  /** Blob bodies from it at once. */
  readonly pool: Pool;
  /** And past the store: these are held by clients, who may be slow. */
  readonly relaySlots: Slots;
  /** How long what it says of a tag is believed. */
  readonly ttlOf: (repo: Repo, tag: string) => number;
}

/** All upstreams, by the names that clients may call them. */
export class Upstreams {
  readonly #byName = new Map<string, Upstream>();
  readonly #all: readonly Upstream[];
  readonly #default: string;

  constructor(upstreams: readonly Upstream[], defaultUpstream: string) {
    this.#all = upstreams;
    this.#default = defaultUpstream;
    for (const upstream of upstreams) {
      for (const name of [upstream.client.registry, ...upstream.aliases]) this.#byName.set(name, upstream);
    }
  }

  /**
   * The repo that a client means by `name`, in the registry that it names by `ns`. Throws `registry-unknown` for one
   * that is not configured, before anything is looked up, and `name-invalid`.
   */
  repo(name: string, ns: string | undefined): Repo {
    const upstream = this.#byName.get(ns ?? this.#default);
    if (upstream) return createRepo(upstream.client.registry, name);
    throw new MirrorError(
      'registry-unknown',
      `registry ${JSON.stringify((ns ?? '').slice(0, 150))}: not among the configured upstreams`,
    );
  }

  of(repo: Repo): Upstream {
    const upstream = this.#byName.get(repo.registry);
    if (!upstream) throw new Error(`no upstream for ${repo.key}`);
    return upstream;
  }

  get all(): readonly RegistryClient[] {
    return this.#all.map(({ client }) => client);
  }

  async close(): Promise<void> {
    await Promise.all(this.#all.map(({ client }) => client.close()));
  }
}
