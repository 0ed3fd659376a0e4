/** Who takes connections, several at a time: a fill. */
export interface Claimant {
  /** The smaller, the sooner it gets its next connection; it grows by one with each that it has and does not yield. */
  readonly rank: number;
  /** It brings hardly anything by what it holds. */
  readonly isSlow: boolean;
  /** Gives a connection back soon, if it can go on without. Returns whether it will. */
  yield(): boolean;
}

/** How many connections one registry is good for; `parent`: and all registries under one pattern together. */
export class Pool {
  readonly limit: number;
  readonly parent: Pool | undefined;
  used = 0;

  constructor(limit: number, parent?: Pool) {
    this.limit = limit;
    this.parent = parent;
  }

  /** How many connections more this one has than the other; what lies under one pattern counts together against others. */
  lead(other: Pool): number {
    const [mine, theirs] = [this.parent ?? this, other.parent ?? other];
    return mine === theirs ? this.used - other.used : mine.used - theirs.used;
  }

  get isFull(): boolean {
    return this.used >= this.limit || this.parent?.isFull === true;
  }

  count(by: 1 | -1): void {
    this.used += by;
    this.parent?.count(by);
  }
}

const lookAgainMs = 1000;

interface Waiter {
  readonly claimant: Claimant;
  readonly pool: Pool;
  readonly grant: () => void;
}

/**
 * Upstream connections for bodies: a cap over all and one for each upstream, given to whoever has the smallest rank, among
 * equals to whose registry (or all under its pattern) has fewest, and then in the order of asking. Who has none and is worth
 * more than what others hold does not wait for the end of a span: one of them is asked to yield. So it is when another
 * registry has two more, or when the holder brings hardly anything: registries that keep their connections busy with nothing
 * do not starve the rest.
 */
export class Connections {
  readonly #limit: () => number;
  readonly #waiting = new Set<Waiter>();
  readonly #holding = new Map<Claimant, { pool: Pool; count: number }>();
  #used = 0;
  #timer: NodeJS.Timeout | undefined;

  /** `limit`: of all together, as it is now. */
  constructor(limit: () => number) {
    this.#limit = limit;
  }

  /** Resolves to how to give it back, once. Rejects with the signal's reason. */
  async take(claimant: Claimant, pool: Pool, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const left = (): void => {
        this.#waiting.delete(waiter);
        reject(signal.reason as Error);
      };
      const waiter: Waiter = {
        claimant,
        pool,
        grant: () => {
          signal.removeEventListener('abort', left);
          this.#waiting.delete(waiter);
          this.#count(claimant, pool, 1);
          resolve();
        },
      };
      this.#waiting.add(waiter);
      signal.addEventListener('abort', left, { once: true });
      this.#grant();
      if (this.#waiting.has(waiter)) this.#makeRoom(waiter);
      this.#lookAgain();
    });
    return () => {
      this.#count(claimant, pool, -1);
      this.#grant();
      this.#makeRoomForNext();
    };
  }

  /** The claimant counts for more than it did when it took its place in the line. */
  changed(claimant: Claimant): void {
    this.#grant();
    for (const waiter of this.#waiting) if (waiter.claimant === claimant) this.#makeRoom(waiter);
  }

  /** What others do with theirs may count for less a little later. */
  #lookAgain(): void {
    if (this.#waiting.size === 0) return;
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#makeRoomForNext();
      this.#lookAgain();
    }, lookAgainMs).unref();
  }

  #grant(): void {
    while (this.#used < this.#limit()) {
      const best = this.#best(({ pool }) => !pool.isFull);
      if (!best) return;
      best.grant();
    }
  }

  #best(may: (waiter: Waiter) => boolean): Waiter | undefined {
    let best: Waiter | undefined;
    for (const waiter of this.#waiting) {
      if (may(waiter) && (!best || isBefore(waiter, best))) best = waiter;
    }
    return best;
  }

  /** The best of each pool in turn, until somebody yields for it. */
  #makeRoomForNext(): void {
    const tried = new Set<Pool>();
    for (;;) {
      const next = this.#best(({ pool }) => !tried.has(pool));
      if (!next || this.#makeRoom(next)) return;
      tried.add(next.pool);
    }
  }

  /** Asks for a connection back where that helps, if what is done with it counts for less. Returns whether one comes. */
  #makeRoom({ claimant, pool }: Waiter): boolean {
    if (this.#holding.has(claimant)) return false;
    const { parent } = pool;
    // Only what lies under the same full cap is of use: else it would go to somebody else, and be asked back for ever.
    const isOfUse = (other: Pool): boolean => {
      if (pool.used >= pool.limit) return other === pool;
      if (parent?.isFull) return other.parent === parent;
      return this.#used >= this.#limit();
    };
    const holders = [...this.#holding]
      .filter(([, held]) => isOfUse(held.pool))
      // A holder's rank is that of one connection more.
      .filter(([holder, held]) => {
        const lead = holder.rank - 1 - claimant.rank;
        return lead > 0 || (lead === 0 && (held.pool.lead(pool) >= 2 || holder.isSlow));
      })
      .sort(([a, heldOfA], [b, heldOfB]) => b.rank - a.rank || heldOfB.pool.used - heldOfA.pool.used);
    return holders.some(([holder]) => holder.yield());
  }

  #count(claimant: Claimant, pool: Pool, by: 1 | -1): void {
    this.#used += by;
    pool.count(by);
    const held = this.#holding.get(claimant);
    const count = (held?.count ?? 0) + by;
    if (count > 0) this.#holding.set(claimant, { pool, count });
    else this.#holding.delete(claimant);
  }
}

function isBefore(a: Waiter, b: Waiter): boolean {
  const [rankOfA, rankOfB] = [a.claimant.rank, b.claimant.rank];
  return rankOfA < rankOfB || (rankOfA === rankOfB && a.pool.lead(b.pool) < 0);
}
