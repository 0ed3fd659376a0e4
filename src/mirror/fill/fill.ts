import { blobMediaType, type Content } from '../../oci/content.ts';
import type { Digest } from '../../oci/digest.ts';
import { resolveWant, type Want } from '../../oci/range.ts';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { Clock } from '../../util/clock.ts';
import { isFault, MirrorError, toMirrorError } from '../../util/errors.ts';
import type { Links } from '../access/links.ts';
import type { Upstream } from '../upstreams.ts';
import { ArrivingContent, type ArrivingContext } from './arriving.ts';
import type { Connections } from './connections.ts';
import { FillDemand } from './demand.ts';
import { Download, type DownloadOptions } from './download.ts';
import { Opening, type LeaseFor, type OpeningOptions } from './opening.ts';

export interface FillOptions extends DownloadOptions, OpeningOptions {}

export interface FillContext {
  readonly store: BlobStore;
  readonly links: Links;
  readonly clock: Clock;
  readonly log: Logger;
  readonly onFault: (error: MirrorError) => void;
  readonly connections: Connections;
}

interface FillParts extends FillContext {
  readonly upstream: Upstream;
  /** The repo may read what an earlier fill has left. */
  readonly isProven: boolean;
  /** Removes the fill from the table of running fills. */
  readonly unregister: () => void;
}

/**
 * One blob download, independent of any client request. It opens with the upstream's first response and ends by commit
 * or by fault; or idle, if only ranges were wanted.
 */
export class Fill {
  readonly repo: Repo;
  /** Resolves once the upstream has responded or the fill has failed. */
  readonly settled: Promise<unknown>;
  ended: Promise<void> = Promise.resolve();
  readonly #digest: Digest;
  readonly #options: FillOptions;
  readonly #context: FillContext;
  readonly #upstream: Upstream;
  readonly #unregister: () => void;
  readonly #what: string;
  readonly #source: BlobSource;
  readonly #ingest: Ingest;
  readonly #demand: FillDemand;
  readonly #arriving: ArrivingContext;
  readonly #opening: Opening;
  #download: Download;
  readonly #settle: () => void;
  readonly #stop = new AbortController();
  #leaseFor: LeaseFor | undefined;
  #isOver = false;

  constructor(repo: Repo, digest: Digest, options: FillOptions, parts: FillParts) {
    const { upstream, isProven, unregister, ...context } = parts;
    this.repo = repo;
    this.#digest = digest;
    this.#options = options;
    this.#context = context;
    this.#upstream = upstream;
    this.#unregister = unregister;
    this.#what = `GET ${repo.key} blob ${digest}`;
    this.#source = upstream.client.blobSource(repo, digest);
    const onReadersChanged = (): void => this.#download.demandChanged();
    this.#ingest = context.store.ingest(repo.registry, digest, onReadersChanged);
    this.#demand = new FillDemand(this.#ingest, options.completeRanges);
    this.#download = this.#newDownload();
    this.#arriving = this.#arrivingContext();
    this.#opening = new Opening(options, {
      ...context,
      repo,
      digest,
      upstream,
      isProven,
      unregister,
      what: this.#what,
      source: this.#source,
      ingest: this.#ingest,
      download: this.#download,
      demand: this.#demand,
      arriving: this.#arriving,
      onOpen: (leaseFor) => this.#opened(leaseFor ?? ((want) => this.#lease(want))),
      onRelay: (why) => this.#warnOfRelay(why),
    });
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
      demand: this.#demand,
    });
  }

  #arrivingContext(): ArrivingContext {
    const { clock, store } = this.#context;
    const { firstByteTimeoutMs, giveUpAfterMs } = this.#options;
    const slots = this.#upstream.relaySlots;
    const relay = { source: this.#source, clock, slots, firstByteTimeoutMs, giveUpAfterMs };
    return { digest: this.#digest, verifier: store.verifier, relay };
  }

  get isOpen(): boolean {
    return this.#leaseFor !== undefined;
  }

  /** No further request may join, though the fill may still be shutting down. */
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
    return this.#demand.hasReaders;
  }

  /** Fetch the whole blob, with or without readers. */
  wantWhole(): void {
    this.#demand.wantWhole();
  }

  /** A lease on the content, taken synchronously once the upstream has responded. */
  lease(want: Want): Promise<Content> {
    this.#demand.noteWant(want);
    if (!this.#leaseFor) {
      const hadWaiting = this.#demand.hasWaiting;
      const content = this.#demand.wait(want);
      if (!hadWaiting) this.#opening.onFirstReader();
      return content;
    }
    const content = this.#leaseFor(want);
    this.#download.demandChanged();
    return Promise.resolve(content);
  }

  start(): void {
    this.ended = this.#run().catch((error: unknown) => this.#fail(toMirrorError(error)));
  }

  /** Ends the fill, unless all bytes are there. */
  stop(): void {
    const why = new MirrorError('draining', `blob ${this.#digest}: shutting down`);
    this.#stop.abort(why);
    if (this.isOpen) this.#download.fail(why);
  }

  async #run(): Promise<void> {
    const goesOn = await this.#opening.run(this.#stop.signal);
    if (!goesOn) return;
    // The fill may have been stopped while it waited for space.
    if (this.#stop.signal.aborted) this.#download.fail(this.#stop.signal.reason as MirrorError);
    const outcome = await this.#download.outcome;
    if (outcome === 'idle') {
      await this.#download.settled();
      if (!this.#ingest.isComplete) {
        this.#unregister();
        await this.#ingest.suspend();
        return;
      }
    }
    await this.#verify();
    if (isFromPattern(this.repo)) this.#opening.confirm();
    await this.#context.store.commit(this.#ingest, blobMediaType);
    this.#unregister();
  }

  /** Verifies the digest. Bytes left by an earlier process may be damaged: then downloads everything again, once. */
  async #verify(): Promise<void> {
    try {
      await this.#ingest.verify();
      return;
    } catch (error) {
      if (!isFault(error, 'digest-mismatch') || !this.#ingest.isUnproven) throw error;
      this.#context.log.warn(
        { repo: this.repo.key, digest: this.#digest },
        'blob left by an earlier process is damaged: download starts over',
      );
    }
    await this.#ingest.startOver();
    this.#download = this.#newDownload();
    this.#download.retries.progress();
    this.wantWhole();
    this.#download.demandChanged();
    await this.#download.outcome;
    await this.#ingest.verify();
  }

  /** Leases from the ingest; relayed past the store from where the store runs full. */
  #lease(want: Want): Content {
    const { size } = this.#ingest;
    const range = size === undefined ? undefined : resolveWant(want, size);
    const isUnsatisfiable = want !== 'whole' && size !== undefined && range === undefined;
    if (range) this.#demand.addRangeBytes(range.end - range.start);
    const lease = this.#ingest.lease(isUnsatisfiable ? { start: size, end: size } : range);
    return new ArrivingContent(this.#arriving, { size: () => this.#ingest.size, lease });
  }

  #opened(leaseFor: LeaseFor): void {
    this.#leaseFor = leaseFor;
    this.#demand.answer(leaseFor);
    this.#settle();
  }

  async #fail(error: MirrorError): Promise<void> {
    this.#isOver = true;
    await this.#download.settled();
    this.#unregister();
    if (this.isOpen) {
      // No client waits for a response any more, so the fault must be reported here.
      this.#context.onFault(error);
      if (error.fault === 'store-full' && !this.isVerified) this.#warnOfRelay(error);
      else
        this.#context.log[error.row.level](
          { err: error, repo: this.repo.key, digest: this.#digest },
          'fill failed',
        );
    }
    this.#demand.fail(error);
    this.#settle();
    if (error.fault === 'store-full' && !this.isVerified) await this.#ingest.overflow();
    else await this.#ingest.fail(error);
  }

  #warnOfRelay(why: MirrorError): void {
    this.#context.log.warn(
      { err: why, repo: this.repo.key, digest: this.#digest },
      'blob passed through uncached',
    );
  }
}
