interface Waiter {
  readonly owner: string;
  readonly amount: number;
  readonly grant: () => void;
}

/**
 * So many bytes at once, given in the order of asking. One owner has half of them at most, so that one who keeps its bytes for
 * long does not stop the others.
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
   * Resolves to how to give them back, once; twice is fine. What is more than the owner's share waits for all of that. Rejects
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
    let isGiven = false;
    return () => {
      if (isGiven) return;
      isGiven = true;
      this.#count(owner, -amount);
      this.#grant();
    };
  }

  #grant(): void {
    for (const waiter of this.#waiting) {
      const { owner, amount, grant } = waiter;
      // It waits for its own bytes, and lets others pass.
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
