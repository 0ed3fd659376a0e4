interface Waiter {
  readonly owner: string;
  readonly amount: number;
  readonly grant: () => void;
}

/**
 * A byte budget granted in request order. One owner gets half at most, so that an owner that holds its bytes for long does
 * not block the others.
 */
export class Budget {
  readonly #share: number;
  readonly #waiting = new Set<Waiter>();
  readonly #usedBy = new Map<string, number>();
  #left: number;
  readonly #total: number;

  constructor(total: number) {
    this.#total = total;
    this.#left = total;
    this.#share = Math.floor(total / 2);
  }

  get used(): number {
    return this.#total - this.#left;
  }

  /**
   * Resolves to a function that returns the bytes (idempotent). Requests above half the budget take exactly half. Rejects
   * with the signal's reason.
   */
  async take(owner: string, bytes: number, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    const amount = Math.min(bytes, this.#share);
    await new Promise<void>((resolve, reject) => {
      const leave = (): void => {
        this.#waiting.delete(waiter);
        this.#grant();
        reject(signal.reason as Error);
      };
      const waiter = {
        owner,
        amount,
        grant: () => {
          signal.removeEventListener('abort', leave);
          resolve();
        },
      };
      signal.addEventListener('abort', leave, { once: true });
      this.#waiting.add(waiter);
      this.#grant();
    });
    let isReturned = false;
    return () => {
      if (isReturned) return;
      isReturned = true;
      this.#count(owner, -amount);
      this.#grant();
    };
  }

  #grant(): void {
    for (const waiter of this.#waiting) {
      const { owner, amount, grant } = waiter;
      // An owner at its limit waits for its own bytes; other owners overtake it.
      if ((this.#usedBy.get(owner) ?? 0) + amount > this.#share) continue;
      if (amount > this.#left) return;
      this.#waiting.delete(waiter);
      this.#count(owner, amount);
      grant();
    }
  }

  #count(owner: string, bytes: number): void {
    this.#left -= bytes;
    const used = (this.#usedBy.get(owner) ?? 0) + bytes;
    if (used > 0) this.#usedBy.set(owner, used);
    else this.#usedBy.delete(owner);
  }
}
