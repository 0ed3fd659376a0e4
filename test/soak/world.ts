import { imageOf, indexOf, type Blob, type Image, type Manifest } from '../support/images.ts';
import { rentRegistries, type Rented } from '../support/rented.ts';
import { Upstream } from '../support/upstream.ts';
import type { Random } from './random.ts';

/** A version of a tag, and when (ms) the tag moved on. */
export interface Version {
  readonly manifest: Manifest;
  readonly images: readonly Image[];
  replacedAt: number;
}

/** A tag of a repository that clients pull. */
export interface Item {
  readonly upstream: Upstream;
  readonly repo: string;
  readonly tag: string;
  /** Value of the `ns` parameter. */
  readonly ns: string;
  /** Whether outsiders must not see it. */
  readonly isPrivate: boolean;
  readonly versions: Version[];
}

export const login = { username: 'team', password: 's3cr3t-password' };
export const rentedPattern = '*.azurecr.io';

const itemsPerUpstream = 16;

/** Registries of every kind, with images whose layers are partly shared. */
export class World {
  readonly hub: Upstream;
  readonly open: Upstream;
  readonly honest: Upstream;
  readonly liar: Upstream;
  readonly rented: Rented;
  readonly items: readonly Item[];
  /** Every byte that may ever be served, by digest. */
  readonly content = new Map<string, Buffer>();
  readonly #random: Random;
  readonly #bases: readonly Blob[];
  #probes = 0;

  private constructor(upstreams: Upstream[], rented: Rented, random: Random) {
    const [hub, open, honest, liar] = upstreams as [Upstream, Upstream, Upstream, Upstream];
    this.hub = hub;
    this.open = open;
    this.honest = honest;
    this.liar = liar;
    this.rented = rented;
    this.#random = random;
    this.#bases = Array.from({ length: 4 }, () => random.blob(random.between(2_000_000, 8_000_000)));
    const kinds = [
      { upstream: hub, prefix: 'library/app', ns: 'docker.io', isPrivate: false },
      { upstream: hub, prefix: 'team/private', ns: 'docker.io', isPrivate: true },
      { upstream: open, prefix: 'acme/app', ns: 'open.example', isPrivate: false },
      { upstream: honest, prefix: 'app', ns: 'honest.azurecr.io', isPrivate: false },
    ];
    const items = kinds.flatMap(({ prefix, ...kind }) =>
      Array.from({ length: itemsPerUpstream }, (_, i) => {
        const repo = `${prefix}${i}`;
        if (kind.isPrivate) kind.upstream.permittedUsers.set(repo, login.username);
        return { ...kind, repo, tag: 'latest', versions: [] };
      }),
    );
    this.items = random.shuffled(items);
    for (const item of this.items) this.push(item, random.between(200_000, 6_000_000));
  }

  static async start(random: Random): Promise<World> {
    const upstreams = await Promise.all([
      Upstream.start({ auth: 'bearer', cdn: true, anonymous: true, login }),
      Upstream.start({ referrers: true }),
      Upstream.start(),
      Upstream.start(),
    ]);
    const [, , honest, liar] = upstreams;
    const hosts = { 'honest.azurecr.io': honest, 'liar.azurecr.io': liar };
    return new World(upstreams, await rentRegistries(rentedPattern, hosts), random);
  }

  get upstreams(): readonly Upstream[] {
    return [this.hub, this.open, this.honest];
  }

  /** Private content of another item that must not be served through `item`. */
  foreignTo(item: Item): Blob {
    const others = this.items.filter((each) => each.isPrivate && each !== item);
    return this.#random.of(this.#random.of(others).versions.at(-1)!.images[0]!.layers.slice(1));
  }

  /** Moves a tag to a new image. */
  push(item: Item, layerBytes = this.#random.between(50_000, 300_000)): void {
    const random = this.#random;
    // Private repos share no layers: shared ones would be public.
    const base = item.isPrivate ? random.blob(random.between(100_000, 1_000_000)) : random.of(this.#bases);
    const layers = [base, random.blob(layerBytes), random.blob(random.between(10, 20_000))];
    const images = [imageOf(layers, random.blob(500))];
    if (random.next() < 0.3)
      images.push(imageOf([base, random.blob(random.between(10, 100_000))], random.blob(500)));
    const manifest = images.length === 1 ? images[0]!.manifest : indexOf(images);
    for (const image of images) {
      item.upstream.addImage(item.repo, image);
      for (const { digest, bytes } of [image.manifest, image.config, ...image.layers])
        this.content.set(digest, bytes);
    }
    this.content.set(manifest.digest, manifest.bytes);
    item.upstream.addManifest(item.repo, manifest, item.tag);
    const last = item.versions.at(-1);
    if (last) last.replacedAt = Date.now();
    item.versions.push({ manifest, images, replacedAt: Infinity });
  }

  /** An image of an upstream that was never requested. */
  probe(upstream: Upstream): Item {
    const like = this.items.find((item) => item.upstream === upstream && !item.isPrivate)!;
    const item = { ...like, repo: `${like.repo}/probe${this.#probes++}`, versions: [] };
    this.push(item);
    return item;
  }

  async stop(): Promise<void> {
    await Promise.all([this.hub, this.open, this.honest, this.liar].map((upstream) => upstream.stop()));
    await this.rented.close();
  }
}
