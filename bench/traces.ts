import { readFileSync } from 'node:fs';

/** A request for a blob, by number. */
export interface Request {
  readonly blob: number;
  readonly size: number;
  readonly isManifest: boolean;
}

export interface Trace {
  readonly name: string;
  readonly requests: readonly Request[];
}

type Image = readonly Request[];

const KB = 1000;
const MB = 1000 * KB;

/** Deterministic random numbers. */
function randomly(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Synthetic images: layers on one of a few base images, a configuration and a manifest. */
class Registry {
  readonly random: () => number;
  #next = 0;
  readonly #bases: Request[][];

  constructor(seed: number, bases = 30) {
    this.random = randomly(seed);
    this.#bases = Array.from({ length: bases }, () => this.#layers(1 + this.#upTo(4), 12 * MB));
  }

  /** `from`: an image whose layers it shares, except the last. */
  image(from?: Image): Image {
    const base = from?.slice(2, -1) ?? this.#bases[Math.floor(this.#bases.length * this.random() ** 2)] ?? [];
    const own = this.#layers(from ? 1 : 1 + this.#upTo(5), 4 * MB);
    return [this.#blob(1500, true), this.#blob(8 * KB), ...base, ...own];
  }

  images(count: number): Image[] {
    return Array.from({ length: count }, () => this.image());
  }

  #upTo(count: number): number {
    return Math.floor(count * this.random());
  }

  /** Lognormal around `median`: layer sizes span five orders of magnitude. */
  #layers(count: number, median: number): Request[] {
    return Array.from({ length: count }, () => {
      const normal = Math.sqrt(-2 * Math.log(1 - this.random())) * Math.cos(2 * Math.PI * this.random());
      return this.#blob(Math.round(Math.min(2000 * MB, Math.max(200, median * Math.exp(1.6 * normal)))));
    });
  }

  #blob(size: number, isManifest = false): Request {
    return { blob: this.#next++, size, isManifest };
  }
}

/** An index below `count`, by Zipf's law. */
function zipf(count: number, exponent: number, random: () => number): () => number {
  const sums: number[] = [];
  let sum = 0;
  for (let rank = 1; rank <= count; rank++) sums.push((sum += rank ** -exponent));
  return () => {
    const at = random() * sum;
    let low = 0;
    let high = count - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((sums[middle] ?? 0) < at) low = middle + 1;
      else high = middle;
    }
    return low;
  };
}

/** Every pull requests the whole image: CI runners start empty. */
function zipfTrace(): Trace {
  const registry = new Registry(1);
  const images = registry.images(3000);
  const pick = zipf(images.length, 0.9, registry.random);
  return { name: 'zipf', requests: Array.from({ length: 20_000 }, () => images[pick()] ?? []).flat() };
}

/** CI that pulls a hundred images all day, with occasional crawls through a thousand others. */
function scanTrace(): Trace {
  const registry = new Registry(2);
  const hot = registry.images(100);
  const pick = zipf(hot.length, 0.6, registry.random);
  const pulls: Image[] = [];
  for (let day = 0; day < 8; day++) {
    for (let i = 0; i < 1500; i++) pulls.push(hot[pick()] ?? []);
    const crawled = registry.images(1000);
    for (const image of crawled) {
      pulls.push(image);
      if (registry.random() < 0.3) pulls.push(hot[pick()] ?? []);
    }
  }
  return { name: 'scans', requests: pulls.flat() };
}

/** A hundred projects rebuilt every night on the day before; mostly today's images are pulled. */
function nightlyTrace(): Trace {
  const registry = new Registry(3);
  let projects = registry.images(100);
  const tools = registry.images(60);
  const project = zipf(projects.length, 0.8, registry.random);
  const tool = zipf(tools.length, 0.9, registry.random);
  const pulls: Image[] = [];
  for (let night = 0; night < 14; night++) {
    const before = projects;
    projects = projects.map((image) => registry.image(registry.random() < 0.9 ? image : undefined));
    for (let i = 0; i < 1500; i++) {
      const dice = registry.random();
      pulls.push((dice < 0.55 ? projects[project()] : dice < 0.6 ? before[project()] : tools[tool()]) ?? []);
    }
  }
  return { name: 'nightly builds', requests: pulls.flat() };
}

/** Services rolled out over a fleet one after another, and sometimes rolled back. */
function rollingTrace(): Trace {
  const registry = new Registry(4);
  const releases = registry.images(60).map((image) => [image]);
  const pulls: Image[] = [];
  for (let i = 0; i < 400; i++) {
    const service = releases[Math.floor(releases.length * registry.random())] ?? [];
    const isRollback = registry.random() < 0.1;
    if (!isRollback) service.push(registry.image(registry.random() < 0.8 ? service.at(-1) : undefined));
    const image = service.at(isRollback ? -2 : -1) ?? service.at(-1) ?? [];
    for (let node = 0; node < 40; node++) {
      pulls.push(image);
      // New nodes pull all running services.
      if (registry.random() < 0.2)
        pulls.push(releases[Math.floor(releases.length * registry.random())]?.at(-1) ?? []);
    }
  }
  return { name: 'rolling releases', requests: pulls.flat() };
}

/** All of these at once, as behind a company's mirror. */
function mixedTrace(parts: readonly Trace[]): Trace {
  const random = randomly(5);
  const queues = parts.map(({ requests }, part) => ({ requests, part, at: 0 }));
  const requests: Request[] = [];
  for (let live = queues; live.length > 0; live = live.filter((queue) => queue.at < queue.requests.length)) {
    const queue = live[Math.floor(live.length * random())];
    // Interleave whole pulls: up to the next manifest.
    for (let first = true; queue && queue.at < queue.requests.length; first = false) {
      const request = queue.requests[queue.at];
      if (!request || (!first && request.isManifest)) break;
      requests.push({ ...request, blob: request.blob * parts.length + queue.part });
      queue.at += 1;
    }
  }
  return { name: 'all together', requests };
}

/** Successful GETs of a Layercache access log. */
export function recordedTrace(file: string): Trace {
  const numbers = new Map<string, number>();
  const requests: Request[] = [];
  for (const line of readFileSync(file, 'utf8').split('\n')) {
    if (!line.includes('"msg":"request"')) continue;
    const { method, kind, status, reference, repo, bytes } = JSON.parse(line) as Record<
      string,
      string | number
    >;
    if (method !== 'GET' || status !== 200 || (kind !== 'blob' && kind !== 'manifest')) continue;
    const key = kind === 'blob' ? String(reference) : `${repo}@${reference}`;
    const blob = numbers.get(key) ?? numbers.size;
    numbers.set(key, blob);
    requests.push({ blob, size: Number(bytes), isManifest: kind === 'manifest' });
  }
  return { name: file, requests };
}

export function syntheticTraces(): Trace[] {
  const parts = [zipfTrace(), scanTrace(), nightlyTrace(), rollingTrace()];
  return [...parts, mixedTrace(parts)];
}
