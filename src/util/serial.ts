/** Runs work one at a time, in the order of the calls. Work that fails does not stop what comes after it. */
export class Serial {
  #tail: Promise<unknown> = Promise.resolve();

  run<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#tail.then(work);
    this.#tail = done.catch(() => undefined);
    return done;
  }

  /** Resolves when the work given so far has ended. */
  async idle(): Promise<void> {
    await this.#tail;
  }
}
