import type { Ingest } from '../../store/ingest/ingest.ts';
import type { Clock } from '../../util/clock.ts';
import { MirrorError } from '../../util/errors.ts';
import type { Claimant, Connections, Pool } from './connections.ts';
import type { Demand } from './demand.ts';
import { Pace } from './pace.ts';
import { isAwaited } from './spans.ts';
import { preempted, type Span } from './transfer.ts';

export interface ClaimContext {
  /** Operation and object, for error messages. */
  readonly what: string;
  readonly connections: Connections;
  readonly pool: Pool;
  readonly clock: Clock;
  readonly demand: Demand;
  readonly ingest: Ingest;
  /** The running spans. */
  readonly spans: ReadonlySet<Span>;
  /** Whether the upstream supports range requests, as far as observed. */
  readonly takesRanges: () => boolean;
}

/** Added to the rank of a download that no client waits for. */
const background = 1000;
/** Added to the rank of a download that was slow on its last connection, so that it comes after its equals. */
const slowPenalty = 0.5;

/** One download's claim to connections: its rank, the connections it holds, and which one it gives up first. */
export class Claim implements Claimant {
  readonly #context: ClaimContext;
  readonly #pace: Pace;
  #held = 0;
  /** Aborts the first request, while it has no response. */
  #firstRequest: AbortController | undefined;

  constructor(context: ClaimContext) {
    this.#context = context;
    this.#pace = new Pace(context.clock);
  }

  get rank(): number {
    const held = this.#held - this.#connected.filter(({ stop }) => stop.signal.aborted).length;
    return held + (this.#pace.wasSlow ? slowPenalty : 0) + (this.#context.demand.hasReaders ? 0 : background);
  }

  /** Below the minimum rate over the last seconds. */
  get isSlow(): boolean {
    return this.#pace.isSlow;
  }

  yield(): boolean {
    const { demand, ingest, takesRanges } = this.#context;
    this.#pace.yielding();
    if (this.#firstRequest) {
      this.#firstRequest.abort(preempted);
      this.#firstRequest = undefined;
      return true;
    }
    // Without range support, aborting loses the whole stream: keep it while it serves a reader at a useful rate.
    if (!takesRanges() && demand.hasReaders && !this.isSlow) return false;
    const spans = this.#connected.filter(({ stop }) => !stop.signal.aborted);
    const span = spans.findLast((each) => !isAwaited(each, ingest)) ?? spans.at(-1);
    span?.stop.abort(preempted);
    return span !== undefined;
  }

  /** The first client now waits, so the rank has changed. */
  onFirstReader(): void {
    this.#context.connections.rankChanged(this);
  }

  /** Counts bytes received over this claim's connections. */
  received(bytes: number): void {
    this.#pace.add(bytes);
  }

  /**
   * Waits for a connection. Resolves to its release function, which may be called twice. Rejects with the signal's
   * reason.
   */
  async connect(signal: AbortSignal): Promise<() => void> {
    const { connections, pool } = this.#context;
    const done = await connections.take(this, pool, signal);
    if (this.#held === 0) this.#pace.connected();
    this.#held += 1;
    let isReleased = false;
    return () => {
      if (isReleased) return;
      isReleased = true;
      this.#held -= 1;
      done();
    };
  }

  /**
   * Sends the first request; the connection is held until `done`. If the connection is preempted before the response,
   * the request is sent again on the next one. Throws `upstream-busy` if no connection is free before the deadline,
   * and the request's faults.
   */
  async sendFirst<T>(
    send: (signal: AbortSignal) => Promise<T>,
    deadline: AbortSignal,
  ): Promise<{ answer: T; done: () => void }> {
    for (;;) {
      const done = await this.connect(deadline).catch((cause: unknown) => {
        const what = `${this.#context.what}: no free connection before the deadline`;
        throw new MirrorError('upstream-busy', what, { cause, retryAfterMs: 5000 });
      });
      const firstRequest = new AbortController();
      this.#firstRequest = firstRequest;
      try {
        return { answer: await send(AbortSignal.any([deadline, firstRequest.signal])), done };
      } catch (error) {
        done();
        // The connection was preempted: wait for another one.
        if (!firstRequest.signal.aborted || deadline.aborted) throw error;
      } finally {
        this.#firstRequest = undefined;
      }
    }
  }

  get #connected(): Span[] {
    return [...this.#context.spans].filter(({ isConnected }) => isConnected);
  }
}
