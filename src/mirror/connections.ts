/** Who takes connections, several at a time: a fill. */
export interface Claimant {
  /** The smaller, the sooner it gets its next connection; it grows by one with each that it has and does not yield. */
  readonly rank: number;
  /** Gives a connection back soon, if it can go on without. Returns whether it will. */
  yield(): boolean;
}

/** How many connections one upstream is good for. */
export class Pool {
  readonly limit: number;
  used = 0;

  constructor(limit: number) {
    this.limit = limit;
  }
}

interface Waiter {
  readonly claimant: Claimant;
  readonly pool: Pool;
  readonly grant: () => void;
}

/**
 * Upstream connections for bodies: a cap over all and one for each upstream, given to whoever has the smallest rank, and
 * among equals in the order of asking. Who has none and is worth more than what others hold does not wait for the end
 * of a span: one of them is asked to yield.
 */
export class Connections {
  readonly #limit: number;
  readonly #waiting = new Set<Waiter>();
  readonly #holding = new Map<Claimant, { pool: Pool; count: number }>();
  #used = 0;

  constructor(limit: number) {
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
    });
    return () => {
      this.#count(claimant, pool, -1);
      this.#grant();
      const next = this.#best(() => true);
      if (next) this.#makeRoom(next);
    };
  }

  /** The claimant counts for more than it did when it took its place in the line. */
  changed(claimant: Claimant): void {
    this.#grant();
    for (const waiter of this.#waiting) if (waiter.claimant === claimant) this.#makeRoom(waiter);
  }

  #grant(): void {
    while (this.#used < this.#limit) {
      const best = this.#best(({ pool }) => pool.used < pool.limit);
      if (!best) return;
      best.grant();
    }
  }

  #best(may: (waiter: Waiter) => boolean): Waiter | undefined {
    let best: Waiter | undefined;
    for (const waiter of this.#waiting) {
      if (may(waiter) && (!best || waiter.claimant.rank < best.claimant.rank)) best = waiter;
    }
    return best;
  }

  /** Asks for a connection back from who has most of them, if what it does with it counts for less. */
  #makeRoom({ claimant, pool }: Waiter): void {
    if (this.#holding.has(claimant)) return;
    const holders = [...this.#holding]
      .filter(([, held]) => this.#used >= this.#limit || held.pool === pool)
      .map(([holder]) => holder)
      // A holder's rank is that of one connection more.
      .filter((holder) => holder.rank - 1 > claimant.rank)
      .sort((a, b) => b.rank - a.rank);
    for (const holder of holders) if (holder.yield()) return;
  }

  #count(claimant: Claimant, pool: Pool, by: 1 | -1): void {
    this.#used += by;
    pool.used += by;
    const held = this.#holding.get(claimant);
    const count = (held?.count ?? 0) + by;
    if (count > 0) this.#holding.set(claimant, { pool, count });
    else this.#holding.delete(claimant);
  }
}
