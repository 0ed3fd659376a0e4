import type { ByteRange } from '../../oci/range.ts';
import { withMargin, type Ingest } from '../../store/ingest/ingest.ts';
import type { UpstreamBlob } from '../../upstream/answers.ts';
import { toFault } from '../../upstream/http/transport.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { Clock } from '../../util/clock.ts';
import { MirrorError, toMirrorError } from '../../util/errors.ts';
import type { Claimant, Connections, Pool } from './connections.ts';
import { Retries } from './retries.ts';
import { nextSpan } from './spans.ts';

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
  /** Somebody waits for its bytes. */
  readonly hasReaders: () => boolean;
}

/** A byte range that one upstream connection is fetching. */
interface Span {
  /** Where it stands. */
  start: number;
  end: number;
  /** It has one of the connections that are counted. */
  isConnected: boolean;
  readonly stop: AbortController;
}

/** Added to the rank of what nobody waits for. */
const background = 1000;
/** Added to the rank of what has held a connection and brought hardly anything: it goes after its equals. */
const inVain = 0.5;
/** A stream that brings less than this over that time gives way to others. */
const slowBytesPerSecond = 16 * 1024;
const measureMs = 4000;
const notNeeded = new Error('another span is needed more');

/**
 * Brings what is missing of one blob: asks for it in spans, several at once where that gains something, as often as it
 * takes, and nearest to the readers first. What breaks off is asked for again from where it broke.
 */
export class Download implements Claimant {
  /** The whole is wanted, not only what readers are waiting for. */
  completing = false;
  /** Room for the whole is set aside at once. */
  reservesAll = false;
  readonly retries: Retries;
  readonly #options: DownloadOptions;
  readonly #context: DownloadContext;
  readonly #ingest: Ingest;
  readonly #spans = new Set<Span>();
  readonly #running = new Set<Promise<void>>();
  readonly #outcome = Promise.withResolvers<'complete' | 'idle'>();
  #connections = 0;
  /** Whether the upstream takes ranges, as far as it has shown. */
  #ranges = true;
  #measuredAt: number;
  #measuredBytes = 0;
  /** When it last gave a connection back. */
  #wasSlow = false;
  #retryTimer: NodeJS.Timeout | undefined;
  /** The first question, while it is not answered. */
  #asking: AbortController | undefined;
  #over: 'complete' | 'idle' | 'failed' | undefined;

  constructor(options: DownloadOptions, context: DownloadContext) {
    this.#options = options;
    this.#context = context;
    this.#ingest = context.ingest;
    this.retries = new Retries(context.clock, options.giveUpAfterMs);
    this.#measuredAt = context.clock.monotonic();
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

  get rank(): number {
    const kept = this.#connections - this.#connected.filter(({ stop }) => stop.signal.aborted).length;
    return kept + (this.#wasSlow ? inVain : 0) + (this.#context.hasReaders() ? 0 : background);
  }

  yield(): boolean {
    this.#wasSlow = this.isSlow;
    if (this.#asking) {
      this.#asking.abort(notNeeded);
      this.#asking = undefined;
      return true;
    }
    // One stream from the start would be lost: it is worth that only while somebody gets something by it.
    if (!this.#ranges && this.#context.hasReaders() && !this.isSlow) return false;
    const spans = this.#connected.filter(({ stop }) => !stop.signal.aborted);
    const span = spans.findLast((each) => !this.#isAwaited(each)) ?? spans.at(-1);
    span?.stop.abort(notNeeded);
    return span !== undefined;
  }

  /** The first question; its answer is to be given to `begin`, or discarded, and then the connection back. */
  async ask(
    range: ByteRange | undefined,
    deadline: AbortSignal,
  ): Promise<{ blob: UpstreamBlob; done: () => void }> {
    for (;;) {
      const done = await this.#connect(deadline).catch((cause: unknown) => {
        throw new MirrorError('upstream-busy', `${this.#context.what}: no free connection in time`, {
          cause,
          retryAfterMs: 5000,
        });
      });
      const asking = new AbortController();
      this.#asking = asking;
      try {
        const signal = AbortSignal.any([deadline, asking.signal]);
        return { blob: await this.#context.source.fetch(range, signal), done };
      } catch (error) {
        done();
        // Its connection was needed more while no answer came: it asks again when it gets another one.
        if (!asking.signal.aborted || deadline.aborted) throw error;
      } finally {
        this.#asking = undefined;
      }
    }
  }

  /**
   * Uses the first answer; `proceed` goes on from it. Throws `store-full`, also when there is no room before the signal
   * aborts: then the answer is still the caller's.
   */
  async begin(blob: UpstreamBlob, done: () => void, signal: AbortSignal): Promise<void> {
    const span = this.#span({ start: blob.start, end: blob.end ?? Infinity }, true);
    await this.#ingest.begin(blob.size, this.#room(span, blob.size), signal);
    this.#ranges = blob.size !== undefined && (blob.start > 0 || blob.end !== blob.size);
    const release = (): void => {
      span.isConnected = false;
      done();
    };
    this.#run(span, () => this.#receive(span, blob).finally(release));
  }

  /** Looks for what there is to do: after every change in what is wanted, there, or on its way. */
  proceed(): void {
    const { hasReaders } = this.#context;
    if (this.#over) return;
    if (this.#ingest.isComplete) {
      this.#end('complete', () => this.#outcome.resolve('complete'));
      return;
    }
    if (!hasReaders() && !this.completing) {
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
      const span = this.#span({ start, end });
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

  /** It has brought hardly anything in the last seconds. */
  get isSlow(): boolean {
    const elapsedMs = this.#context.clock.monotonic() - this.#measuredAt;
    return elapsedMs >= measureMs && (this.#measuredBytes / elapsedMs) * 1000 < slowBytesPerSecond;
  }

  /** What came lately counts, not what came once. */
  #measure(bytes: number): void {
    const now = this.#context.clock.monotonic();
    if (now - this.#measuredAt >= 2 * measureMs) {
      this.#measuredAt = now - measureMs;
      this.#measuredBytes /= 2;
    }
    this.#measuredBytes += bytes;
    if (this.#wasSlow && this.#measuredBytes > (slowBytesPerSecond * measureMs) / 1000) this.#wasSlow = false;
  }

  get #limit(): number {
    return this.#ranges && this.#context.hasReaders() ? this.#options.connectionsPerBlob : 1;
  }

  get #connected(): Span[] {
    return [...this.#spans].filter(({ isConnected }) => isConnected);
  }

  #next(): { start: number; end: number; urgent: boolean } | undefined {
    const { size, present, readers } = this.#ingest;
    if (size === undefined || !this.#ranges) {
      // One stream brings it all.
      if (this.#spans.size > 0) return undefined;
      return { start: present.endOfRun(0), end: size ?? Infinity, urgent: true };
    }
    const { completing } = this;
    const { spanBytes } = this.#options;
    return nextSpan({ size, present, running: [...this.#spans], readers, completing, spanBytes });
  }

  /** Somebody waits for just what this span will bring next. */
  #isAwaited({ start, end }: Span): boolean {
    for (const { offset } of this.#ingest.readers) {
      const stands = this.#ingest.present.endOfRun(offset);
      if (start <= stands && stands < end) return true;
    }
    return false;
  }

  #cutUnawaited(): void {
    const spans = [...this.#spans];
    if (spans.some(({ stop }) => stop.signal.aborted)) return;
    spans.findLast((span) => !this.#isAwaited(span))?.stop.abort(notNeeded);
  }

  #span({ start, end }: ByteRange, isConnected = false): Span {
    return { start, end, isConnected, stop: new AbortController() };
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
        this.proceed();
      });
    this.#running.add(running);
  }

  async #fetch(span: Span): Promise<void> {
    const { signal } = span.stop;
    const done = await this.#connect(signal);
    span.isConnected = true;
    try {
      const deadline = AbortSignal.any([AbortSignal.timeout(this.#options.firstByteTimeoutMs), signal]);
      await this.#ingest.reserve(this.#room(span, this.#ingest.size) ?? 0, deadline);
      const blob = await this.#context.source.fetch({ start: span.start, end: span.end }, deadline, true);
      const { size } = this.#ingest;
      if (size !== undefined && blob.size !== undefined && blob.size !== size) {
        blob.body.discard();
        throw this.#invalid(`the upstream sent one of ${blob.size} bytes, not ${size}`);
      }
      if (blob.size !== undefined) this.#ingest.setSize(blob.size);
      this.#ranges = blob.start === span.start && blob.size !== undefined && (span.start > 0 || this.#ranges);
      if (!this.#ranges) {
        // It sends everything, and what is there already is passed over.
        span.start = blob.start;
        span.end = blob.end ?? Infinity;
        if (blob.size !== undefined && !this.#context.reservesInSteps) await this.#ingest.reserve(blob.size);
      }
      await this.#receive(span, blob);
    } finally {
      span.isConnected = false;
      done();
    }
  }

  async #receive(span: Span, { body, start, end, size }: UpstreamBlob): Promise<void> {
    const { what } = this.#context;
    let offset = start;
    let added = 0;
    const take = async (chunks: Buffer[]): Promise<boolean> => {
      const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
      if (offset + length > (end ?? Infinity)) throw this.#invalid('more bytes came than were announced');
      this.#measure(length);
      if (!this.#context.hasReaders() && this.isSlow) {
        // What nobody waits for is not worth its connection and its room: the next pull goes on from here.
        this.#end('idle', () => this.#outcome.resolve('idle'));
        return false;
      }
      const fresh = await this.#ingest.write(offset, chunks);
      offset += length;
      added += fresh;
      span.start = offset;
      if (fresh > 0) this.retries.progress();
      if (this.#ingest.isComplete && this.#spans.size > 1) this.proceed();
      // Where a span was cut in two, the rest is the other one's.
      return offset < span.end || span.end >= (end ?? Infinity);
    };
    if (start !== end) {
      await body.pipe(take, span.stop.signal).catch((error: unknown) => {
        throw toFault(what, error);
      });
    }
    if (end !== undefined && offset < Math.min(end, span.end)) {
      throw new MirrorError('upstream-down', `${what}: ended after ${offset} of ${end} bytes`);
    }
    if (size === undefined) this.#ingest.setSize(offset);
    if (added === 0 && !this.#ingest.isComplete && offset >= span.end)
      throw this.#invalid('nothing new came');
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
      this.proceed();
    }, delay);
  }

  #end(how: 'complete' | 'idle' | 'failed', settle: () => void): void {
    if (this.#over) return;
    this.#over = how;
    clearTimeout(this.#retryTimer);
    for (const { stop } of this.#spans) stop.abort(notNeeded);
    settle();
  }

  async #connect(signal: AbortSignal): Promise<() => void> {
    const done = await this.#context.connections.take(this, this.#context.pool, signal);
    if (this.#connections === 0) {
      // What it could not bring without one does not count against it.
      this.#measuredAt = this.#context.clock.monotonic();
      this.#measuredBytes = 0;
    }
    this.#connections += 1;
    let given = false;
    return () => {
      if (given) return;
      given = true;
      this.#connections -= 1;
      done();
    };
  }

  /** What the file will hold when all that is on its way has come; undefined if nobody knows. */
  #room(span: Span, size: number | undefined): number | undefined {
    const { present } = this.#ingest;
    if (this.#context.reservesInSteps) return Math.min(withMargin(present.total), size ?? Infinity);
    if (this.reservesAll || span.end === Infinity) return size;
    let coming = span.end - span.start;
    for (const each of this.#spans) {
      if (each !== span) coming += Math.min(each.end, size ?? each.start) - each.start;
    }
    return present.total + coming;
  }

  #invalid(why: string): MirrorError {
    return new MirrorError('upstream-invalid', `${this.#context.what}: ${why}`);
  }
}
