/** Single flight: however many ask for the same key at once, the work is done once and all get its outcome. */
export class Flight<K, V> {
  readonly #running = new Map<K, Promise<V>>();

  /** What runs for the key. */
  of(key: K): Promise<V> | undefined {
    return this.#running.get(key);
  }

  /** Runs `work`, or joins the run that is under way. `joined` tells which. */
  run(key: K, work: () => Promise<V>): { outcome: Promise<V>; joined: boolean } {
    const running = this.#running.get(key);
    if (running) return { outcome: running, joined: true };
    const outcome = work().finally(() => this.#running.delete(key));
    this.#running.set(key, outcome);
    return { outcome, joined: false };
  }
}
