/**
 * Compares eviction policies: `node bench/eviction.ts [ACCESS-LOG ...]` replays synthetic and recorded pulls against caches
 * of several sizes and prints hit ratios by bytes, requests and manifest pulls.
 */
import { maxUses, worthOf } from '../src/store/catalog/worth.ts';
import { recordedTrace, syntheticTraces, type Request, type Trace } from './traces.ts';

/** A simulated cache with an eviction policy. */
interface Policy {
  /** Whether it was a hit. */
  ask(request: Request, at: number): boolean;
}

type MakePolicy = (capacity: number, trace: Trace) => Policy;

/** A min-heap; stale entries (pushed again or removed) are skipped when popped. */
class Heap {
  readonly #keys = new Map<number, number>();
  readonly #heap: { key: number; blob: number }[] = [];

  get size(): number {
    return this.#keys.size;
  }

  has(blob: number): boolean {
    return this.#keys.has(blob);
  }

  push(blob: number, key: number): void {
    this.#keys.set(blob, key);
    this.#heap.push({ key, blob });
    let at = this.#heap.length - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (this.#key(parent) <= key) break;
      this.#swap(at, parent);
      at = parent;
    }
  }

  pop(): { key: number; blob: number } | undefined {
    for (;;) {
      const top = this.#heap[0];
      if (!top) return undefined;
      const last = this.#heap.pop();
      if (last && this.#heap.length > 0) {
        this.#heap[0] = last;
        this.#sink();
      }
      if (this.#keys.get(top.blob) !== top.key) continue;
      this.#keys.delete(top.blob);
      return top;
    }
  }

  #sink(): void {
    for (let at = 0; ;) {
      const left = 2 * at + 1;
      const least = this.#key(left + 1) < this.#key(left) ? left + 1 : left;
      if (this.#key(least) >= this.#key(at)) return;
      this.#swap(at, least);
      at = least;
    }
  }

  #key(at: number): number {
    return this.#heap[at]?.key ?? Infinity;
  }

  #swap(a: number, b: number): void {
    const [first, second] = [this.#heap[a], this.#heap[b]];
    if (!first || !second) return;
    this.#heap[a] = second;
    this.#heap[b] = first;
  }
}

interface Held {
  readonly size: number;
  uses: number;
}

/** Policies with one priority per blob: the lowest is evicted first. */
function byPriority(
  priority: (request: Request, held: Held, at: number, inflation: number) => number,
  mayStay: (request: Request, at: number) => boolean = () => true,
): MakePolicy {
  return (capacity) => {
    const heap = new Heap();
    const held = new Map<number, Held>();
    let used = 0;
    let inflation = 0;
    return {
      ask(request, at) {
        const { blob, size } = request;
        const known = held.get(blob);
        if (known) {
          known.uses += 1;
          heap.push(blob, priority(request, known, at, inflation));
          return true;
        }
        if (size > capacity || !mayStay(request, at)) return false;
        while (used + size > capacity) {
          const victim = heap.pop();
          if (!victim) return false;
          inflation = Math.max(inflation, victim.key);
          used -= held.get(victim.blob)?.size ?? 0;
          held.delete(victim.blob);
        }
        const fresh = { size, uses: 1 };
        held.set(blob, fresh);
        used += size;
        heap.push(blob, priority(request, fresh, at, inflation));
        return false;
      },
    };
  };
}

const lru = byPriority((_request, _held, at) => at);
const lfuWithAging = byPriority((_request, { uses }, _at, inflation) => inflation + uses);

/** Greedy-Dual-Size-Frequency: savings per byte, with a fixed cost per fetch in addition to the bytes. */
function gdsf(fixedBytes: number, manifestBytes = fixedBytes): MakePolicy {
  return byPriority(({ size, isManifest }, { uses }, _at, inflation) => {
    const cost = size + (isManifest ? manifestBytes : fixedBytes);
    return inflation + (uses * cost) / Math.max(size, 4096);
  });
}

/** The policy of the store. */
const ours = byPriority(
  ({ size, isManifest }, { uses }, _at, inflation) =>
    inflation + Math.min(uses, maxUses) * worthOf(size, isManifest),
);

/** Two LRU lists: blobs used once, and blobs used repeatedly, which get four fifths of the space. */
const slru: MakePolicy = (capacity) => {
  const lists = [new Map<number, number>(), new Map<number, number>()] as const;
  const used = [0, 0];
  const drop = (list: 0 | 1, blob: number): number => {
    const size = lists[list].get(blob) ?? 0;
    lists[list].delete(blob);
    used[list] = (used[list] ?? 0) - size;
    return size;
  };
  const add = (list: 0 | 1, blob: number, size: number): void => {
    lists[list].set(blob, size);
    used[list] = (used[list] ?? 0) + size;
  };
  return {
    ask({ blob, size }) {
      const list = lists[1].has(blob) ? 1 : lists[0].has(blob) ? 0 : undefined;
      if (list !== undefined) {
        drop(list, blob);
        add(1, blob, size);
        while ((used[1] ?? 0) > 0.8 * capacity) {
          const [oldest] = lists[1].keys();
          if (oldest === undefined || oldest === blob) break;
          add(0, oldest, drop(1, oldest));
        }
        return true;
      }
      if (size > capacity) return false;
      while ((used[0] ?? 0) + (used[1] ?? 0) + size > capacity) {
        const from = lists[0].size > 0 ? 0 : 1;
        const [oldest] = lists[from].keys();
        if (oldest === undefined) break;
        drop(from, oldest);
      }
      add(0, blob, size);
      return false;
    },
  };
};

/** S3-FIFO: a small queue for new blobs, a main queue for reused ones, and ghosts of evicted ones. */
const s3fifo: MakePolicy = (capacity) => {
  const small = new Map<number, Held>();
  const main = new Map<number, Held>();
  const ghosts = new Map<number, number>();
  let smallBytes = 0;
  let mainBytes = 0;
  let ghostBytes = 0;
  const haunt = (blob: number, size: number): void => {
    ghosts.set(blob, size);
    ghostBytes += size;
    for (const [oldest, bytes] of ghosts) {
      if (ghostBytes <= 0.9 * capacity) break;
      ghosts.delete(oldest);
      ghostBytes -= bytes;
    }
  };
  const evictMain = (): void => {
    for (const [blob, held] of main) {
      main.delete(blob);
      if (held.uses === 0) {
        mainBytes -= held.size;
        return;
      }
      main.set(blob, { ...held, uses: held.uses - 1 });
    }
  };
  const evictSmall = (): void => {
    for (const [blob, held] of small) {
      small.delete(blob);
      smallBytes -= held.size;
      if (held.uses > 0) {
        main.set(blob, { size: held.size, uses: 0 });
        mainBytes += held.size;
      } else {
        haunt(blob, held.size);
        return;
      }
    }
  };
  return {
    ask({ blob, size }) {
      const held = small.get(blob) ?? main.get(blob);
      if (held) {
        held.uses = Math.min(3, held.uses + 1);
        return true;
      }
      if (size > capacity) return false;
      while (smallBytes + mainBytes + size > capacity) {
        if (small.size > 0 && (smallBytes > 0.1 * capacity || main.size === 0)) evictSmall();
        else evictMain();
      }
      if (ghosts.has(blob)) {
        ghostBytes -= ghosts.get(blob) ?? 0;
        ghosts.delete(blob);
        main.set(blob, { size, uses: 0 });
        mainBytes += size;
      } else {
        small.set(blob, { size, uses: 0 });
        smallBytes += size;
      }
      return false;
    },
  };
};

/** Belády: evicts the blob whose next use is farthest; `bySize`: the largest product of size and that distance. */
function belady(bySize: boolean): MakePolicy {
  return (capacity, { requests }) => {
    const nextUse = new Float64Array(requests.length);
    const seen = new Map<number, number>();
    for (let at = requests.length - 1; at >= 0; at--) {
      const blob = requests[at]?.blob ?? 0;
      nextUse[at] = seen.get(blob) ?? Infinity;
      seen.set(blob, at);
    }
    const farness = ({ size }: Request, at: number): number => {
      const distance = (nextUse[at] ?? Infinity) - (bySize ? at : 0);
      return bySize ? -distance * size : -distance;
    };
    return byPriority(
      (request, _held, at) => farness(request, at),
      (_request, at) => nextUse[at] !== Infinity,
    )(capacity, { name: '', requests });
  };
}

const policies: Record<string, MakePolicy> = {
  LRU: lru,
  SLRU: slru,
  'S3-FIFO': s3fifo,
  'LFU with aging': lfuWithAging,
  GDSF: gdsf(1e15),
  'GDSF, 1 MB a fetch': gdsf(1e6),
  'GDSF, 1 MB a fetch, 16 MB a pull': gdsf(1e6, 16e6),
  '**the same, up to 16 uses** (ours)': ours,
  Belády: belady(false),
  'Belády by size': belady(true),
};

function measure(
  make: MakePolicy,
  capacity: number,
  trace: Trace,
): { bytes: number; requests: number; pulls: number } {
  const policy = make(capacity, trace);
  const hits = { bytes: 0, requests: 0, pulls: 0 };
  const all = { bytes: 0, requests: 0, pulls: 0 };
  trace.requests.forEach((request, at) => {
    const isHit = policy.ask(request, at);
    for (const [counts, counted] of [
      [all, true],
      [hits, isHit],
    ] as const) {
      if (!counted) continue;
      counts.bytes += request.size;
      counts.requests += 1;
      if (request.isManifest) counts.pulls += 1;
    }
  });
  return {
    bytes: hits.bytes / all.bytes,
    requests: hits.requests / all.requests,
    pulls: hits.pulls / Math.max(1, all.pulls),
  };
}

const shares = [0.02, 0.05, 0.1];
const percent = (ratio: number): string => (100 * ratio).toFixed(1).padStart(5);

const files = process.argv.slice(2);
const traces = [...syntheticTraces(), ...files.map(recordedTrace)];
const lines: string[] = [];
for (const trace of traces) {
  const sizes = new Map(trace.requests.map(({ blob, size }) => [blob, size]));
  const total = [...sizes.values()].reduce((sum, size) => sum + size, 0);
  lines.push(
    '',
    `### ${trace.name}: ${trace.requests.length} requests, ${sizes.size} blobs, ${Math.round(total / 1e9)} GB`,
    '',
  );
  lines.push(`| policy | ${shares.map((share) => `cap ${100 * share} %`).join(' | ')} |`);
  lines.push(`| --- | ${shares.map(() => '---').join(' | ')} |`);
  for (const [name, make] of Object.entries(policies)) {
    const cells = shares.map((share) => {
      const { bytes, requests, pulls } = measure(make, share * total, trace);
      return [bytes, requests, pulls].map(percent).join(' / ');
    });
    lines.push(`| ${name} | ${cells.join(' | ')} |`);
  }
}
process.stdout.write(`${lines.join('\n').trim()}\n`);
