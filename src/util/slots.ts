/**
 * A counted number of places, given out in the order of asking. A caller that gives up (its signal aborts) leaves the
 * line without disturbing it.
 */
export class Slots {
  readonly #waiting = new Set<() => void>();
  #free: number;

  constructor(count: number) {
    this.#free = count;
  }

  /** A place, if one is free now. */
  tryTake(): (() => void) | undefined {
    if (this.#free === 0) return undefined;
    this.#free -= 1;
    return this.#giver();
  }

  /** Resolves to a function that gives the place back (once; twice is fine). Rejects with the signal's reason. */
  async take(signal?: AbortSignal): Promise<() => void> {
    signal?.throwIfAborted();
    if (this.#free > 0) this.#free -= 1;
    else {
      await new Promise<void>((resolve, reject) => {
        const granted = (): void => {
          signal?.removeEventListener('abort', left);
          resolve();
        };
        const left = (): void => {
          this.#waiting.delete(granted);
          reject(signal?.reason as Error);
        };
        this.#waiting.add(granted);
        signal?.addEventListener('abort', left, { once: true });
      });
    }
    return this.#giver();
  }

  #giver(): () => void {
    let given = false;
    return () => {
      if (given) return;
      given = true;
      this.#give();
    };
  }

  #give(): void {
    const [next] = this.#waiting;
    if (next === undefined) this.#free += 1;
    else {
      this.#waiting.delete(next);
      next();
    }
  }
}
