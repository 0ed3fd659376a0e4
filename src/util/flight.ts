import { orLate, type Deadline } from './deadline.ts';

interface Run<V> {
  readonly outcome: Promise<V>;
  /** Of whoever started it. */
  readonly deadline: Deadline | undefined;
}

/** Single flight: however many ask for the same key at once, the work is done once and all get its outcome. */
export class Flight<K, V> {
  readonly #running = new Map<K, Run<V>>();

  /** What runs for the key. */
  of(key: K): Promise<V> | undefined {
    return this.#running.get(key)?.outcome;
  }

  /** Runs `work`, or joins the run that is under way. `joined` tells which. */
  run(key: K, work: () => Promise<V>, deadline?: Deadline): { outcome: Promise<V>; joined: boolean } {
    const running = this.#running.get(key);
    if (running) return { outcome: running.outcome, joined: true };
    const outcome = work().finally(() => this.#running.delete(key));
    this.#running.set(key, { outcome, deadline });
    return { outcome, joined: false };
  }

  /**
   * The same for callers with deadlines: each waits until its own and then gets `late()`. The work has the time of whoever
   * started it; who has joined and has time left when that was not enough does it anew.
   */
  async within(
    key: K,
    deadline: Deadline,
    work: () => Promise<V>,
    late: () => unknown,
  ): Promise<{ value: V; joined: boolean }> {
    for (;;) {
      const first = this.#running.get(key)?.deadline;
      const { outcome, joined } = this.run(key, work, deadline);
      try {
        return { value: await (joined ? orLate(outcome, deadline.signal, late) : outcome), joined };
      } catch (error) {
        if (!joined || deadline.isOver || !first?.isOver) throw error;
      }
    }
  }
}
