import { setTimeout as sleep } from 'node:timers/promises';
import { blobMediaType, smallSize, type Content } from '../../oci/content.ts';
import { hashesTo, type Digest } from '../../oci/digest.ts';
import { isWholeWant, resolveWant, type ByteRange, type Want } from '../../oci/range.ts';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Ingest, IngestLease } from '../../store/ingest/ingest.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Provenance, UpstreamBlob } from '../../upstream/answers.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { Clock } from '../../util/clock.ts';
import { isFault, MirrorError, toMirrorError } from '../../util/errors.ts';
import type { Access } from '../access/links.ts';
import type { Upstream } from '../upstreams.ts';
import { ArrivingContent } from './arriving.ts';
import type { Connections } from './connections.ts';
import { Download, type DownloadOptions } from './download.ts';
import { Relay, type OpenBlob } from './relay.ts';

export interface FillOptions extends DownloadOptions {
  /** After ranges of a blob its rest follows. */
  completeRanges: boolean;
}

export interface FillContext {
  readonly store: BlobStore;
  readonly access: Access;
  readonly clock: Clock;
  readonly log: Logger;
  readonly onFault: (error: MirrorError) => void;
  readonly connections: Connections;
}

interface FillParts extends FillContext {
  readonly upstream: Upstream;
  /** The repo may have what an earlier fill has left. */
  readonly isProven: boolean;
  /** From then on nobody finds this fill. */
  readonly leave: () => void;
}

interface Waiter {
  readonly want: Want;
  readonly resolve: (content: Content) => void;
  readonly reject: (error: MirrorError) => void;
}

/** Who asks for no more than this only wants to know what is there. */
const probeBytes = 4096;

/**
 * One download in progress, owned by nobody's request: it opens with the upstream's first answer, and ends by commit or
 * by fault, or when ranges were all that was wanted.
 */
export class Fill {
  readonly repo: Repo;
  /** Resolves once the upstream has answered, or not. */
  readonly settled: Promise<unknown>;
  ended: Promise<void> = Promise.resolve();
  readonly #digest: Digest;
  readonly #options: FillOptions;
  readonly #context: FillContext;
  readonly #upstream: Upstream;
  readonly #isProven: boolean;
  readonly #leave: () => void;
  readonly #what: string;
  readonly #source: BlobSource;
  readonly #ingest: Ingest;
  #download: Download;
  readonly #waiting: Waiter[] = [];
  readonly #settle: () => void;
  readonly #stop = new AbortController();
  #lease: ((want: Want) => Content) | undefined;
  #isOver = false;
  #asksPlainly = false;
  /** How the upstream has given it. */
  #given: Provenance | undefined;
  #openingTimer: NodeJS.Timeout | undefined;
  /** Bytes that ranges have asked for. */
  #asked = 0;

  constructor(repo: Repo, digest: Digest, options: FillOptions, parts: FillParts) {
    const { upstream, isProven, leave, ...context } = parts;
    this.repo = repo;
    this.#digest = digest;
    this.#options = options;
    this.#context = context;
    this.#upstream = upstream;
    this.#isProven = isProven;
    this.#leave = leave;
    this.#what = `GET ${repo.key} blob ${digest}`;
    this.#source = upstream.client.blobSource(repo, digest);
    this.#ingest = context.store.ingest(repo.registry, digest);
    this.#download = this.#newDownload();
    this.#ingest.onReaders = () => this.#download.proceed();
    const { promise, resolve } = Promise.withResolvers<undefined>();
    this.settled = promise;
    this.#settle = () => resolve(undefined);
  }

  #newDownload(): Download {
    return new Download(this.#options, {
      ...this.#context,
      what: this.#what,
      ingest: this.#ingest,
      source: this.#source,
      pool: this.#upstream.pool,
      reservesInSteps: isFromPattern(this.repo),
      hasReaders: () => this.hasReaders,
    });
  }

  get isOpen(): boolean {
    return this.#lease !== undefined;
  }

  /** Nobody is to join any more, though something of it is still being ended. */
  get isOver(): boolean {
    return this.#isOver || this.#download.isOver;
  }

  get size(): number | undefined {
    return this.#ingest.size;
  }

  get isVerified(): boolean {
    return this.#ingest.isVerified;
  }

  get hasReaders(): boolean {
    return this.#waiting.length > 0 || this.#ingest.readers.size > 0;
  }

  /** The whole is wanted, whoever waits for it. */
  askWhole(): void {
    this.#download.reservesAll = true;
    this.#download.completing = true;
  }

  /** A lease, taken in the tick in which the upstream answers, or in this one if it has. */
  lease(want: Want): Promise<Content> {
    if (isWholeWant(want)) this.askWhole();
    if (!this.#lease) {
      const content = new Promise<Content>((resolve, reject) =>
        this.#waiting.push({ want, resolve, reject }),
      );
      if (this.#waiting.length === 1) {
        // What was fetched ahead is waited for now.
        this.#openingTimer?.refresh();
        this.#context.connections.changed(this.#download);
      }
      return content;
    }
    const content = this.#lease(want);
    this.#download.proceed();
    return Promise.resolve(content);
  }

  start(): void {
    this.ended = this.#run().catch((error: unknown) => this.#fail(toMirrorError(error)));
  }

  /** Ends it, except when it has all its bytes. */
  stop(): void {
    const why = new MirrorError('draining', `blob ${this.#digest}: shutting down`);
    this.#stop.abort(why);
    if (this.isOpen) this.#download.fail(why);
  }

  async #run(): Promise<void> {
    const isComing = await this.#open();
    if (!isComing) return;
    // It may have come to stop while room was being made.
    if (this.#stop.signal.aborted) this.#download.fail(this.#stop.signal.reason as MirrorError);
    const outcome = await this.#download.outcome;
    if (outcome === 'idle') {
      await this.#download.settled();
      if (!this.#ingest.isComplete) {
        this.#leave();
        await this.#ingest.suspend();
        return;
      }
    }
    await this.#verify();
    if (isFromPattern(this.repo)) this.#confirm();
    await this.#context.store.commit(this.#ingest, blobMediaType);
    this.#leave();
  }

  /** What an earlier process has left may have been damaged since: then all of it comes again, once. */
  async #verify(): Promise<void> {
    try {
      await this.#ingest.verify();
      return;
    } catch (error) {
      if (!isFault(error, 'digest-mismatch') || !this.#ingest.isUnproven) throw error;
      this.#context.log.warn(
        { repo: this.repo.key, digest: this.#digest },
        'what an earlier process had left of a blob is damaged: it starts over',
      );
    }
    await this.#ingest.startOver();
    this.#download = this.#newDownload();
    this.#download.retries.progress();
    this.askWhole();
    this.#download.proceed();
    await this.#download.outcome;
    await this.#ingest.verify();
  }

  /** Until there is something to give. Resolves to whether more is to come. */
  async #open(): Promise<boolean> {
    const late = new AbortController();
    this.#openingTimer = setTimeout(
      () => late.abort(new DOMException('too late', 'TimeoutError')),
      this.#options.firstByteTimeoutMs,
    );
    const deadline = AbortSignal.any([late.signal, this.#stop.signal]);
    try {
      return await this.#openBefore(deadline);
    } finally {
      clearTimeout(this.#openingTimer);
    }
  }

  async #openBefore(deadline: AbortSignal): Promise<boolean> {
    await this.#ingest.reopen();
    if (this.#hasAllWanted()) {
      this.#opened((want) => this.#arriving(want));
      this.#download.proceed();
      return true;
    }
    for (;;) {
      try {
        return await this.#first(deadline);
      } catch (error) {
        if (isFault(error, 'upstream-invalid') && !this.#asksPlainly) {
          // It may be the range that it cannot make sense of.
          this.#asksPlainly = true;
          continue;
        }
        const delay = deadline.aborted
          ? undefined
          : this.#download.retries.after(toMirrorError(error), false);
        if (delay === undefined) throw error;
        // A deadline that passes meanwhile leaves the fault as it is.
        await sleep(delay, undefined, { signal: deadline }).catch(() => {
          throw error;
        });
      }
    }
  }

  /** Whether an earlier fill has left all that is wanted now. */
  #hasAllWanted(): boolean {
    const { size, present } = this.#ingest;
    if (size === undefined || this.#waiting.length === 0 || !this.#isProven) return false;
    return this.#waiting.every(({ want }) => {
      const range = resolveWant(want, size);
      // A part of what is not proven has to come from the upstream.
      return range !== undefined && present.has(range) && (isWholeWant(want) || !this.#ingest.isUnproven);
    });
  }

  /** The first answer shows whether the repo may have the blob, how large it is, and whether there are ranges. */
  async #first(deadline: AbortSignal): Promise<boolean> {
    const range = await this.#firstRange(deadline);
    const { blob, done } = await this.#download.ask(range, deadline);
    try {
      this.#given = blob;
      if (!isFromPattern(this.repo)) this.#confirm();
      if (blob.size !== undefined && blob.size <= smallSize) {
        await this.#takeSmall(blob, blob.size, deadline);
        done();
        return false;
      }
      // What waits longer for room is passed on past the store while its clients still wait.
      const roomBy = AbortSignal.timeout(this.#options.firstByteTimeoutMs / 4);
      await this.#download.begin(blob, done, AbortSignal.any([deadline, roomBy]));
    } catch (error) {
      done();
      if (!isFault(error, 'store-full')) {
        blob.body.discard();
        throw error;
      }
      this.#relay(blob, error);
      await this.#ingest.suspend();
      return false;
    }
    this.#opened((want) => this.#arriving(want));
    this.#download.proceed();
    if (this.#download.completing) this.#ingest.startVerifying();
    return true;
  }

  /** What to ask for first; undefined for a plain GET. */
  async #firstRange(deadline: AbortSignal): Promise<ByteRange | undefined> {
    const { spanBytes } = this.#options;
    const { present } = this.#ingest;
    const want = this.#waiting[0]?.want ?? 'whole';
    let size = this.#ingest.size ?? this.#context.store.sizeOfChild(this.#digest);
    // What is verified as a whole is asked for as a whole.
    const isOne = size !== undefined && size <= (want === 'whole' ? spanBytes : smallSize);
    if (this.#asksPlainly || (isOne && present.total === 0)) return undefined;
    if (want !== 'whole' && 'last' in want) {
      size ??= (await this.#upstream.client.headBlob(this.repo, this.#digest, deadline)).size;
    }
    const open = { start: 0, end: Infinity };
    const known = want !== 'whole' && 'start' in want ? want : open;
    const range = (size === undefined ? undefined : resolveWant(want, size)) ?? known;
    const start = present.endOfRun(range.start);
    // What follows a range will be wanted too.
    const follows = this.#options.completeRanges && range.end - range.start > probeBytes;
    const to = this.#download.completing || follows ? (size ?? Infinity) : range.end;
    const end = Math.min(to, start + spanBytes, present.next(start));
    return { start, end: Math.max(end, start + 1) };
  }

  /** Small enough to be verified before anything of it is shown. */
  async #takeSmall(blob: UpstreamBlob, size: number, deadline: AbortSignal): Promise<void> {
    let { body } = blob;
    if (blob.start > 0 || blob.end !== size) {
      body.discard();
      ({ body } = await this.#source.fetch(undefined, deadline));
    }
    // An empty one may have come as the refusal of a range.
    const bytes =
      size === 0 ? Buffer.alloc(0) : await this.#upstream.client.bytes(this.#what, body, size, deadline);
    if (!hashesTo(bytes, this.#digest)) {
      throw new MirrorError('digest-mismatch', `${this.#what}: the bytes do not hash to it`);
    }
    if (isFromPattern(this.repo)) this.#confirm();
    const content = this.#context.store.put(bytes, {
      digest: this.#digest,
      mediaType: blobMediaType,
      children: [],
    });
    this.#leave();
    this.#opened(() => content);
    await this.#ingest.suspend();
  }

  /** The repo has it: since the upstream says so, or, for one under a pattern, since the bytes are right. */
  #confirm(): void {
    if (this.#given) this.#context.access.confirm(this.repo, this.#digest, this.#given);
  }

  #arriving(want: Want): Content {
    const { size } = this.#ingest;
    const range = size === undefined ? undefined : resolveWant(want, size);
    const none = want !== 'whole' && size !== undefined && range === undefined;
    if (range) this.#asked += range.end - range.start;
    if (this.#options.completeRanges && this.#asked > probeBytes) this.#download.completing = true;
    const lease = this.#ingest.lease(none ? { start: size, end: size } : range);
    return this.#content(lease, () => this.#ingest.size);
  }

  /** The store can take nothing of it: those who wait get it past the store, and newcomers see for themselves. */
  #relay(blob: UpstreamBlob, why: MirrorError): void {
    this.#warnOfRelay(why);
    // The answer that is open already goes to the first who waits for the whole, if it may keep its connection.
    const hasAll = blob.start === 0 && blob.end === blob.size;
    const done = hasAll ? this.#upstream.relaySlots.tryTake() : undefined;
    const spare: OpenBlob[] = done ? [{ blob, done }] : [];
    if (!done) blob.body.discard();
    this.#leave();
    this.#opened((want) => {
      const open = want === 'whole' ? spare.pop() : undefined;
      return this.#content(undefined, () => blob.size, open);
    });
    for (const { blob: unused, done: give } of spare) {
      unused.body.discard();
      give();
    }
  }

  /** `lease`: absent where the store can take nothing of it; `open`: an answer that is on its way already. */
  #content(lease: IngestLease | undefined, size: () => number | undefined, open?: OpenBlob): Content {
    const { clock, store } = this.#context;
    const { firstByteTimeoutMs, giveUpAfterMs } = this.#options;
    const slots = this.#upstream.relaySlots;
    const context = { source: this.#source, clock, slots, firstByteTimeoutMs, giveUpAfterMs };
    const relay = new Relay(this.#digest, context, open);
    return new ArrivingContent({ digest: this.#digest, size, verifier: store.verifier, lease, relay });
  }

  #opened(lease: (want: Want) => Content): void {
    this.#download.retries.progress();
    this.#lease = lease;
    for (const { want, resolve } of this.#waiting.splice(0)) resolve(lease(want));
    this.#settle();
  }

  async #fail(error: MirrorError): Promise<void> {
    this.#isOver = true;
    await this.#download.settled();
    this.#leave();
    if (this.isOpen) {
      // Nobody waits for its answer any more, so nobody else would tell.
      this.#context.onFault(error);
      if (error.fault === 'store-full' && !this.isVerified) this.#warnOfRelay(error);
      else
        this.#context.log[error.row.level](
          { err: error, repo: this.repo.key, digest: this.#digest },
          'a fill failed',
        );
    }
    for (const { reject } of this.#waiting.splice(0)) reject(error);
    this.#settle();
    if (error.fault === 'store-full' && !this.isVerified) await this.#ingest.overflow();
    else await this.#ingest.fail(error);
  }

  #warnOfRelay(why: MirrorError): void {
    this.#context.log.warn(
      { err: why, repo: this.repo.key, digest: this.#digest },
      'a blob is passed through uncached',
    );
  }
}
