import { SharedDeadline, type Deadline } from './deadline.ts';
import { isFault } from './errors.ts';

interface Run<V> {
  readonly outcome: Promise<V>;
  readonly deadline: SharedDeadline | undefined;
}

/** Single flight: however many ask for the same key at once, the work is done once and all get its outcome. */
export class Flight<K, V> {
  readonly #running = new Map<K, Run<V>>();

  /** What runs for the key. */
  of(key: K): Promise<V> | undefined {
    return this.#running.get(key)?.outcome;
  }

  /** Runs `work`, or joins the run that is under way. `joined` tells which. */
  run(key: K, work: () => Promise<V>): { outcome: Promise<V>; joined: boolean } {
    const running = this.#running.get(key);
    if (running) return { outcome: running.outcome, joined: true };
    return { outcome: this.#start(key, work()), joined: false };
  }

  /**
   * The same for callers with deadlines: each waits until its own and then gets `late()`. The work has until the latest of
   * them, so that whoever has time left inherits what has begun. If what a caller joined ends because the upstream kept silent, it
   * asks once more: the silence may have been over before it came.
   */
  async within(
    key: K,
    deadline: Deadline,
    work: (deadline: Deadline) => Promise<V>,
    late: () => unknown,
  ): Promise<{ value: V; joined: boolean }> {
    for (let asksAgain = true; ;) {
      const running = this.#running.get(key);
      const shared = running?.deadline;
      shared?.join(deadline);
      const outcome = running?.outcome ?? this.#startWithin(key, deadline, work);
      try {
        return { value: await deadline.before(outcome, late), joined: running !== undefined };
      } catch (error) {
        // It was too late to join: the time of all others was over already.
        const cameLate = shared?.signal.aborted === true && !deadline.isOver;
        const metSilence = running !== undefined && asksAgain && isFault(error, 'upstream-timeout');
        if (!cameLate && !(metSilence && !deadline.isOver)) throw error;
        if (!cameLate) asksAgain = false;
      }
    }
  }

  #startWithin(key: K, deadline: Deadline, work: (deadline: Deadline) => Promise<V>): Promise<V> {
    const shared = new SharedDeadline(deadline);
    return this.#start(
      key,
      work(shared).finally(() => shared.end()),
      shared,
    );
  }

  #start(key: K, work: Promise<V>, deadline?: SharedDeadline): Promise<V> {
    const outcome = work.finally(() => this.#running.delete(key));
    this.#running.set(key, { outcome, deadline });
    // Everybody who waits may have left.
    outcome.catch(() => undefined);
    return outcome;
  }
}
