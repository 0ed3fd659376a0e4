import type { Ingest } from '../../store/ingest/ingest.ts';
import type { Clock } from '../../util/clock.ts';
import { MirrorError } from '../../util/errors.ts';
import type { Claimant, Connections, Pool } from './connections.ts';
import type { Demand } from './demand.ts';
import { Pace } from './pace.ts';
import { isAwaited } from './spans.ts';
import { notNeeded, type Span } from './transfer.ts';

export interface ClaimContext {
  /** What is being done to what, for faults. */
  readonly what: string;
  readonly connections: Connections;
  readonly pool: Pool;
  readonly clock: Clock;
  readonly demand: Demand;
  readonly ingest: Ingest;
  /** Those that run. */
  readonly spans: ReadonlySet<Span>;
  /** Whether the upstream takes ranges, as far as it has shown. */
  readonly takesRanges: () => boolean;
}

/** Added to the rank of what nobody waits for. */
const background = 1000;
/** Added to the rank of what has held a connection and brought hardly anything: it goes after its equals. */
const inVain = 0.5;

/** The claim of one download to connections: how much it counts, what it holds, and what it gives back first. */
export class Claim implements Claimant {
  readonly #context: ClaimContext;
  readonly #pace: Pace;
  #held = 0;
  /** The first question, while it is not answered. */
  #asking: AbortController | undefined;

  constructor(context: ClaimContext) {
    this.#context = context;
    this.#pace = new Pace(context.clock);
  }

  get rank(): number {
    const kept = this.#held - this.#connected.filter(({ stop }) => stop.signal.aborted).length;
    return kept + (this.#pace.wasSlow ? inVain : 0) + (this.#context.demand.hasReaders ? 0 : background);
  }

  /** It has brought hardly anything in the last seconds. */
  get isSlow(): boolean {
    return this.#pace.isSlow;
  }

  yield(): boolean {
    const { demand, ingest, takesRanges } = this.#context;
    this.#pace.yielding();
    if (this.#asking) {
      this.#asking.abort(notNeeded);
      this.#asking = undefined;
      return true;
    }
    // One stream from the start would be lost: it is worth that only while somebody gets something by it.
    if (!takesRanges() && demand.hasReaders && !this.isSlow) return false;
    const spans = this.#connected.filter(({ stop }) => !stop.signal.aborted);
    const span = spans.findLast((each) => !isAwaited(each, ingest)) ?? spans.at(-1);
    span?.stop.abort(notNeeded);
    return span !== undefined;
  }

  /** The first client waits now: the claim counts for more than it did when it took its place in the line. */
  awaited(): void {
    this.#context.connections.changed(this);
  }

  /** So many bytes have come by what it holds. */
  received(bytes: number): void {
    this.#pace.add(bytes);
  }

  /** Waits for a connection. Resolves to how to give it back; twice is fine. Rejects with the signal's reason. */
  async connect(signal: AbortSignal): Promise<() => void> {
    const { connections, pool } = this.#context;
    const done = await connections.take(this, pool, signal);
    if (this.#held === 0) this.#pace.connected();
    this.#held += 1;
    let given = false;
    return () => {
      if (given) return;
      given = true;
      this.#held -= 1;
      done();
    };
  }

  /**
   * Puts the first question over a connection; the connection stays held until `done`. Where it is needed more before the
   * answer comes, the question is aborted and put again over the next one. Throws `upstream-busy` when there is none before
   * the deadline, and the question's fault.
   */
  async ask<T>(
    question: (signal: AbortSignal) => Promise<T>,
    deadline: AbortSignal,
  ): Promise<{ answer: T; done: () => void }> {
    for (;;) {
      const done = await this.connect(deadline).catch((cause: unknown) => {
        const what = `${this.#context.what}: no free connection in time`;
        throw new MirrorError('upstream-busy', what, { cause, retryAfterMs: 5000 });
      });
      const asking = new AbortController();
      this.#asking = asking;
      try {
        return { answer: await question(AbortSignal.any([deadline, asking.signal])), done };
      } catch (error) {
        done();
        // Its connection was needed more while no answer came: it asks again when it gets another one.
        if (!asking.signal.aborted || deadline.aborted) throw error;
      } finally {
        this.#asking = undefined;
      }
    }
  }

  get #connected(): Span[] {
    return [...this.#context.spans].filter(({ isConnected }) => isConnected);
  }
}
