import { SharedDeadline, type Deadline } from './deadline.ts';
import { isFault } from './errors.ts';

interface Run<V> {
  readonly outcome: Promise<V>;
  readonly deadline: SharedDeadline | undefined;
}

/** Single flight: concurrent calls for a key share one run of the work and its outcome. */
export class Flight<K, V> {
  readonly #running = new Map<K, Run<V>>();

  /** The current run for the key. */
  of(key: K): Promise<V> | undefined {
    return this.#running.get(key)?.outcome;
  }

  /** Runs `work`, or joins the current run. */
  run(key: K, work: () => Promise<V>): { outcome: Promise<V>; joined: boolean } {
    const running = this.#running.get(key);
    if (running) return { outcome: running.outcome, joined: true };
    return { outcome: this.#start(key, work()), joined: false };
  }

  /**
   * As `run`, with deadlines: each caller waits until its own, then gets `late()`; the work has until the latest of them.
   * A caller that joined a run which ends in `upstream-timeout` tries once more itself.
   */
  async within(
    key: K,
    deadline: Deadline,
    work: (deadline: Deadline) => Promise<V>,
    late: () => unknown,
  ): Promise<{ value: V; joined: boolean }> {
    for (let mayRetry = true; ;) {
      const running = this.#running.get(key);
      const shared = running?.deadline;
      shared?.join(deadline);
      const outcome = running?.outcome ?? this.#startWithin(key, deadline, work);
      try {
        return { value: await deadline.before(outcome, late), joined: running !== undefined };
      } catch (error) {
        // The run had expired before this caller's deadline could extend it.
        const joinedExpired = shared?.signal.aborted === true && !deadline.isOver;
        const joinedTimeout = running !== undefined && mayRetry && isFault(error, 'upstream-timeout');
        if (!joinedExpired && !(joinedTimeout && !deadline.isOver)) throw error;
        if (!joinedExpired) mayRetry = false;
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
    // All callers may have given up: avoid an unhandled rejection.
    outcome.catch(() => undefined);
    return outcome;
  }
}
