interface Waiter {
  readonly amount: number;
  readonly grant: () => void;
}

/** So many bytes at once, given in the order of asking. */
export class Budget {
  readonly #total: number;
  readonly #waiting = new Set<Waiter>();
  #left: number;

  constructor(total: number) {
    this.#total = total;
    this.#left = total;
  }

  get used(): number {
    return this.#total - this.#left;
  }

  /**
   * Resolves to how to give them back, once; twice is fine. What is more than there is at all waits for all of it. Rejects with
   * the signal's reason.
   */
  async take(bytes: number, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    const amount = Math.min(bytes, this.#total);
    if (this.#waiting.size > 0 || amount > this.#left) {
      await new Promise<void>((resolve, reject) => {
        const leave = (): void => {
          this.#waiting.delete(waiter);
          this.#grant();
          reject(signal.reason as Error);
        };
        const waiter = {
          amount,
          grant: () => {
            signal.removeEventListener('abort', leave);
            resolve();
          },
        };
        this.#waiting.add(waiter);
        signal.addEventListener('abort', leave, { once: true });
      });
    } else this.#left -= amount;
    let isGiven = false;
    return () => {
      if (isGiven) return;
      isGiven = true;
      this.#left += amount;
      this.#grant();
    };
  }

  #grant(): void {
    for (const waiter of this.#waiting) {
      if (waiter.amount > this.#left) return;
      this.#waiting.delete(waiter);
      this.#left -= waiter.amount;
      waiter.grant();
    }
  }
}
