import type { ByteRange } from '../../oci/range.ts';
import { withMargin } from '../../store/ingest/growing-file.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { UpstreamBlob } from '../../upstream/responses.ts';
import type { Clock } from '../../util/clock.ts';
import { toMirrorError, type MirrorError } from '../../util/errors.ts';
import { Claim } from './claim.ts';
import type { Connections, Pool } from './connections.ts';
import type { Demand } from './demand.ts';
import { Retries } from './retries.ts';
import { isAwaited, nextSpan } from './spans.ts';
import { createSpan, preempted, Transfer, type Span } from './transfer.ts';

export interface DownloadOptions {
  /** Connections for one blob while a client waits for it. */
  connectionsPerBlob: number;
  /** Minimum bytes per range request. */
  spanBytes: number;
  /** Covers everything before the first byte of a response. */
  firstByteTimeoutMs: number;
  /** How long retries may go on without a byte, after the first response. */
  giveUpAfterMs: number;
}

export interface DownloadContext {
  /** Operation and object, for error messages. */
  readonly what: string;
  readonly ingest: Ingest;
  readonly source: BlobSource;
  readonly connections: Connections;
  readonly pool: Pool;
  readonly clock: Clock;
  /** Reserve space for received bytes only, not for the size that the registry announces. */
  readonly reservesInSteps: boolean;
  readonly demand: Demand;
}

/**
 * Fetches the missing bytes of one blob in spans, in parallel where that helps, nearest to the readers first. A broken
 * span resumes where it stopped.
 */
export class Download {
  readonly retries: Retries;
  readonly #options: DownloadOptions;
  readonly #context: DownloadContext;
  readonly #ingest: Ingest;
  readonly #demand: Demand;
  readonly #spans = new Set<Span>();
  readonly #running = new Set<Promise<void>>();
  readonly #outcome = Promise.withResolvers<'complete' | 'idle'>();
  readonly #claim: Claim;
  readonly #transfer: Transfer;
  #retryTimer: NodeJS.Timeout | undefined;
  #end: 'complete' | 'idle' | 'failed' | undefined;

  constructor(options: DownloadOptions, context: DownloadContext) {
    this.#options = options;
    this.#context = context;
    this.#ingest = context.ingest;
    this.#demand = context.demand;
    this.retries = new Retries(context.clock, options.giveUpAfterMs);
    this.#claim = new Claim({
      ...context,
      spans: this.#spans,
      takesRanges: () => this.#transfer.takesRanges,
    });
    this.#transfer = new Transfer({
      ...context,
      firstByteTimeoutMs: options.firstByteTimeoutMs,
      room: (span) => this.#room(span, this.#ingest.size),
      onBytes: (count) => this.#accept(count),
      onWritten: (fresh) => this.#written(fresh),
    });
    this.#outcome.promise.catch(() => undefined);
  }

  /** `complete`: all bytes are stored; `idle`: no more are wanted. Rejects with the fault that ended the download. */
  get outcome(): Promise<'complete' | 'idle'> {
    return this.#outcome.promise;
  }

  /** Ended without all bytes. */
  get isOver(): boolean {
    return this.#end === 'idle' || this.#end === 'failed';
  }

  /** Sends the first request. Pass its response to `begin`; or discard it, then call `done`. */
  async sendFirst(
    range: ByteRange | undefined,
    deadline: AbortSignal,
  ): Promise<{ blob: UpstreamBlob; done: () => void }> {
    const { source } = this.#context;
    const { answer, done } = await this.#claim.sendFirst((signal) => source.fetch(range, signal), deadline);
    return { blob: answer, done };
  }

  /** The first client now waits for a prefetched blob. */
  onFirstReader(): void {
    this.#claim.onFirstReader();
  }

  /**
   * Takes the first response; the caller then calls `demandChanged`. Throws `store-full`, also if there is no space
   * before the signal aborts: the response then stays with the caller.
   */
  async begin(blob: UpstreamBlob, done: () => void, signal: AbortSignal): Promise<void> {
    const span = createSpan({ start: blob.start, end: blob.end ?? Infinity }, true);
    await this.#ingest.begin(blob.size, this.#room(span, blob.size), signal);
    this.#transfer.learnFrom(blob);
    const release = (): void => {
      span.isConnected = false;
      done();
    };
    this.#run(span, () => this.#transfer.receive(span, blob).finally(release));
  }

  /** Fetches what is now missing, or ends if nothing is wanted. */
  demandChanged(): void {
    this.#proceed();
  }

  /** Starts the next spans. Called after every change of demand, stored bytes or running spans. */
  #proceed(): void {
    if (this.#end) return;
    if (this.#ingest.isComplete) {
      this.#finish('complete', () => this.#outcome.resolve('complete'));
      return;
    }
    if (!this.#demand.hasReaders && !this.#demand.isWholeWanted) {
      this.#finish('idle', () => this.#outcome.resolve('idle'));
      return;
    }
    if (this.#retryTimer) return;
    for (let next = this.#next(); next; next = this.#next()) {
      if (this.#spans.size >= this.#limit) {
        if (next.urgent) this.#preemptUnawaited();
        return;
      }
      const { start, end } = next;
      for (const span of this.#spans) if (span.start < start && start < span.end) span.end = start;
      const span = createSpan({ start, end });
      this.#run(span, () => this.#fetch(span));
    }
  }

  /** Ends the download with a fault, unless complete. */
  fail(error: MirrorError): void {
    if (!this.#ingest.isComplete) this.#finish('failed', () => this.#outcome.reject(error));
  }

  /** Resolves when no span is running. */
  async settled(): Promise<void> {
    await Promise.all(this.#running);
  }

  get #limit(): number {
    return this.#transfer.takesRanges && this.#demand.hasReaders ? this.#options.connectionsPerBlob : 1;
  }

  #next(): { start: number; end: number; urgent: boolean } | undefined {
    const { size, present, readers } = this.#ingest;
    if (size === undefined || !this.#transfer.takesRanges) {
      // No range support: one stream from the start.
      if (this.#spans.size > 0) return undefined;
      return { start: present.endOfRun(0), end: size ?? Infinity, urgent: true };
    }
    const { isWholeWanted } = this.#demand;
    const { spanBytes } = this.#options;
    return nextSpan({ size, present, running: [...this.#spans], readers, isWholeWanted, spanBytes });
  }

  #preemptUnawaited(): void {
    const spans = [...this.#spans];
    if (spans.some(({ stop }) => stop.signal.aborted)) return;
    spans.findLast((span) => !isAwaited(span, this.#ingest))?.stop.abort(preempted);
  }

  #run(span: Span, work: () => Promise<void>): void {
    this.#spans.add(span);
    const { start } = span;
    const running = work()
      .catch((error: unknown) => {
        if (!span.stop.signal.aborted) this.#failed(toMirrorError(error), span.start > start);
      })
      .finally(() => {
        this.#spans.delete(span);
        this.#running.delete(running);
        this.#proceed();
      });
    this.#running.add(running);
  }

  async #fetch(span: Span): Promise<void> {
    const done = await this.#claim.connect(span.stop.signal);
    span.isConnected = true;
    try {
      await this.#transfer.fetch(span);
    } finally {
      span.isConnected = false;
      done();
    }
  }

  /** Counts received bytes. Returns whether to go on. */
  #accept(bytes: number): boolean {
    this.#claim.received(bytes);
    if (this.#demand.hasReaders || !this.#claim.isSlow) return true;
    // A slow download without readers gives up its connection and space; the next pull resumes it.
    this.#finish('idle', () => this.#outcome.resolve('idle'));
    return false;
  }

  #written(fresh: number): void {
    if (fresh > 0) this.retries.progress();
    if (this.#ingest.isComplete && this.#spans.size > 1) this.#proceed();
  }

  /** `hasReceived`: the failed try received bytes. */
  #failed(error: MirrorError, hasReceived: boolean): void {
    // Spans that break together count as one failure.
    if (this.#retryTimer || this.#end) return;
    const delay = this.retries.after(error, hasReceived);
    if (delay === undefined) {
      this.fail(error);
      return;
    }
    this.#retryTimer = setTimeout(() => {
      this.#retryTimer = undefined;
      this.#proceed();
    }, delay);
  }

  #finish(how: 'complete' | 'idle' | 'failed', settle: () => void): void {
    if (this.#end) return;
    this.#end = how;
    clearTimeout(this.#retryTimer);
    for (const { stop } of this.#spans) stop.abort(preempted);
    settle();
  }

  /** Bytes of the file once all running spans have ended; undefined if unknown. */
  #room(span: Span, size: number | undefined): number | undefined {
    const { present } = this.#ingest;
    if (this.#context.reservesInSteps) return Math.min(withMargin(present.total), size ?? Infinity);
    if (this.#demand.reservesWhole || span.end === Infinity) return size;
    let coming = span.end - span.start;
    for (const each of this.#spans) {
      if (each !== span) coming += Math.min(each.end, size ?? each.start) - each.start;
    }
    return present.total + coming;
  }
}
