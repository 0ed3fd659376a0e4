/** A download that takes connections, several at a time. */
export interface Claimant {
  /** The lowest rank gets the next connection. Grows by one with each connection held, except those being yielded. */
  readonly rank: number;
  /** Its connections transfer below the minimum rate. */
  readonly isSlow: boolean;
  /** Asks for a connection back. Returns whether one will be released soon. */
  yield(): boolean;
}

/** The connection limit of one registry; `parent`: the limit shared by all registries under one pattern. */
export class Pool {
  readonly limit: number;
  readonly parent: Pool | undefined;
  used = 0;

  constructor(limit: number, parent?: Pool) {
    this.limit = limit;
    this.parent = parent;
  }

  /** Connections held beyond `other`'s. Against other pools, all registries under one pattern count together. */
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

const recheckMs = 1000;

interface Waiter {
  readonly claimant: Claimant;
  readonly pool: Pool;
  readonly grant: () => void;
}

/**
 * Upstream connections for blob bodies, under a total limit and one per upstream. Order: lowest rank, then the
 * registry (or pattern) with the fewest connections, then first come. A waiter without a connection preempts a holder
 * of higher rank; at equal rank only if the holder's registry has two more connections or the holder is slow, so that
 * slow registries do not starve the rest.
 */
export class Connections {
  readonly #limit: () => number;
  readonly #waiting = new Set<Waiter>();
  readonly #holding = new Map<Claimant, { pool: Pool; count: number }>();
  #used = 0;
  #timer: NodeJS.Timeout | undefined;

  /** `limit`: the current total limit. */
  constructor(limit: () => number) {
    this.#limit = limit;
  }

  /** Resolves to the release function, to be called once. Rejects with the signal's reason. */
  async take(claimant: Claimant, pool: Pool, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const abandon = (): void => {
        this.#waiting.delete(waiter);
        reject(signal.reason as Error);
      };
      const waiter: Waiter = {
        claimant,
        pool,
        grant: () => {
          signal.removeEventListener('abort', abandon);
          this.#waiting.delete(waiter);
          this.#count(claimant, pool, 1);
          resolve();
        },
      };
      this.#waiting.add(waiter);
      signal.addEventListener('abort', abandon, { once: true });
      this.#grant();
      if (this.#waiting.has(waiter)) this.#makeRoom(waiter);
      this.#scheduleRecheck();
    });
    return () => {
      this.#count(claimant, pool, -1);
      this.#grant();
      this.#makeRoomForNext();
    };
  }

  /** The claimant's rank has fallen: reconsiders its waiters. */
  rankChanged(claimant: Claimant): void {
    this.#grant();
    for (const waiter of this.#waiting) if (waiter.claimant === claimant) this.#makeRoom(waiter);
  }

  /** Rechecks holders periodically: their ranks and rates change. */
  #scheduleRecheck(): void {
    if (this.#waiting.size === 0) return;
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#makeRoomForNext();
      this.#scheduleRecheck();
    }, recheckMs).unref();
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

  /** Tries the best waiter of each pool, until one gets a connection. */
  #makeRoomForNext(): void {
    const tried = new Set<Pool>();
    for (;;) {
      const next = this.#best(({ pool }) => !tried.has(pool));
      if (!next || this.#makeRoom(next)) return;
      tried.add(next.pool);
    }
  }

  /** Asks a holder of lower priority to yield a connection that this waiter could use. Returns whether one will. */
  #makeRoom({ claimant, pool }: Waiter): boolean {
    if (this.#holding.has(claimant)) return false;
    const { parent } = pool;
    // Only a connection under the limit that is reached helps; any other would go to another waiter, and preempt
    // forever.
    const helps = (other: Pool): boolean => {
      if (pool.used >= pool.limit) return other === pool;
      if (parent?.isFull) return other.parent === parent;
      return this.#used >= this.#limit();
    };
    const holders = [...this.#holding]
      .filter(([, held]) => helps(held.pool))
      // A holder's rank counts one connection more than it holds.
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
