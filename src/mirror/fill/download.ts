import type { ByteRange } from '../../oci/range.ts';
import { withMargin } from '../../store/ingest/growing-file.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import type { UpstreamBlob } from '../../upstream/answers.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { Clock } from '../../util/clock.ts';
import { toMirrorError, type MirrorError } from '../../util/errors.ts';
import { Claim } from './claim.ts';
import type { Connections, Pool } from './connections.ts';
import type { Demand } from './demand.ts';
import { Retries } from './retries.ts';
import { isAwaited, nextSpan } from './spans.ts';
import { createSpan, notNeeded, Transfer, type Span } from './transfer.ts';

export interface DownloadOptions {
  /** For one blob at once, while somebody waits for it. */
  connectionsPerBlob: number;
  /** What one connection is asked for at a time, at least. */
  spanBytes: number;
  /** Over everything before the first byte of an answer. */
  firstByteTimeoutMs: number;
  /** As long every try may fail, once something has come. */
  giveUpAfterMs: number;
}

export interface DownloadContext {
  /** What is being done to what, for faults. */
  readonly what: string;
  readonly ingest: Ingest;
  readonly source: BlobSource;
  readonly connections: Connections;
  readonly pool: Pool;
  readonly clock: Clock;
  /** Nothing is set aside for what the registry only says that it will send. */
  readonly reservesInSteps: boolean;
  readonly demand: Demand;
}

/**
 * Brings what is missing of one blob: asks for it in spans, several at once where that gains something, as often as it
 * takes, and nearest to the readers first. What breaks off is asked for again from where it broke.
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
  #over: 'complete' | 'idle' | 'failed' | undefined;

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
      onBytes: (count) => this.#isWorthWriting(count),
      onWritten: (fresh) => this.#written(fresh),
    });
    this.#outcome.promise.catch(() => undefined);
  }

  /** All bytes are there, or nobody wants more of them. Rejects with the fault that ended it. */
  get outcome(): Promise<'complete' | 'idle'> {
    return this.#outcome.promise;
  }

  /** It has ended without all bytes. */
  get isOver(): boolean {
    return this.#over === 'idle' || this.#over === 'failed';
  }

  /** The first question; its answer is to be given to `begin`, or discarded, and then the connection back. */
  async ask(
    range: ByteRange | undefined,
    deadline: AbortSignal,
  ): Promise<{ blob: UpstreamBlob; done: () => void }> {
    const { source } = this.#context;
    const { answer, done } = await this.#claim.ask((signal) => source.fetch(range, signal), deadline);
    return { blob: answer, done };
  }

  /** The first client waits now for what was fetched ahead. */
  awaited(): void {
    this.#claim.awaited();
  }

  /**
   * Uses the first answer; `demandChanged` goes on from it. Throws `store-full`, also when there is no room before the signal
   * aborts: then the answer is still the caller's.
   */
  async begin(blob: UpstreamBlob, done: () => void, signal: AbortSignal): Promise<void> {
    const span = createSpan({ start: blob.start, end: blob.end ?? Infinity }, true);
    await this.#ingest.begin(blob.size, this.#room(span, blob.size), signal);
    this.#transfer.began(blob);
    const release = (): void => {
      span.isConnected = false;
      done();
    };
    this.#run(span, () => this.#transfer.receive(span, blob).finally(release));
  }

  /** The demand has changed: asks for what is missing now, or ends when nothing is wanted any more. */
  demandChanged(): void {
    this.#proceed();
  }

  /** Looks for what there is to do: after every change in what is wanted, there, or on its way. */
  #proceed(): void {
    if (this.#over) return;
    if (this.#ingest.isComplete) {
      this.#end('complete', () => this.#outcome.resolve('complete'));
      return;
    }
    if (!this.#demand.hasReaders && !this.#demand.isWholeWanted) {
      this.#end('idle', () => this.#outcome.resolve('idle'));
      return;
    }
    if (this.#retryTimer) return;
    for (let next = this.#next(); next; next = this.#next()) {
      if (this.#spans.size >= this.#limit) {
        if (next.urgent) this.#cutUnawaited();
        return;
      }
      const { start, end } = next;
      for (const span of this.#spans) if (span.start < start && start < span.end) span.end = start;
      const span = createSpan({ start, end });
      this.#run(span, () => this.#fetch(span));
    }
  }

  /** Ends it with a fault, now. */
  fail(error: MirrorError): void {
    if (!this.#ingest.isComplete) this.#end('failed', () => this.#outcome.reject(error));
  }

  /** Resolves when nothing of it is running any more. */
  async settled(): Promise<void> {
    await Promise.all(this.#running);
  }

  get #limit(): number {
    return this.#transfer.takesRanges && this.#demand.hasReaders ? this.#options.connectionsPerBlob : 1;
  }

  #next(): { start: number; end: number; urgent: boolean } | undefined {
    const { size, present, readers } = this.#ingest;
    if (size === undefined || !this.#transfer.takesRanges) {
      // One stream brings it all.
      if (this.#spans.size > 0) return undefined;
      return { start: present.endOfRun(0), end: size ?? Infinity, urgent: true };
    }
    const { isWholeWanted } = this.#demand;
    const { spanBytes } = this.#options;
    return nextSpan({ size, present, running: [...this.#spans], readers, isWholeWanted, spanBytes });
  }

  #cutUnawaited(): void {
    const spans = [...this.#spans];
    if (spans.some(({ stop }) => stop.signal.aborted)) return;
    spans.findLast((span) => !isAwaited(span, this.#ingest))?.stop.abort(notNeeded);
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

  #isWorthWriting(bytes: number): boolean {
    this.#claim.received(bytes);
    if (this.#demand.hasReaders || !this.#claim.isSlow) return true;
    // What nobody waits for is not worth its connection and its room: the next pull goes on from here.
    this.#end('idle', () => this.#outcome.resolve('idle'));
    return false;
  }

  #written(fresh: number): void {
    if (fresh > 0) this.retries.progress();
    if (this.#ingest.isComplete && this.#spans.size > 1) this.#proceed();
  }

  /** `hasBrought`: the try that failed had brought something. */
  #failed(error: MirrorError, hasBrought: boolean): void {
    // Spans that break off together are one failure.
    if (this.#retryTimer || this.#over) return;
    const delay = this.retries.after(error, hasBrought);
    if (delay === undefined) {
      this.fail(error);
      return;
    }
    this.#retryTimer = setTimeout(() => {
      this.#retryTimer = undefined;
      this.#proceed();
    }, delay);
  }

  #end(how: 'complete' | 'idle' | 'failed', settle: () => void): void {
    if (this.#over) return;
    this.#over = how;
    clearTimeout(this.#retryTimer);
    for (const { stop } of this.#spans) stop.abort(notNeeded);
    settle();
  }

  /** What the file will hold when all that is on its way has come; undefined if nobody knows. */
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
