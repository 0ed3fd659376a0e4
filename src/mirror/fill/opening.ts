import { setTimeout as sleep } from 'node:timers/promises';
import { blobMediaType, smallSize, type Content } from '../../oci/content.ts';
import { hashesTo, type Digest } from '../../oci/digest.ts';
import { isWholeWant, resolveWant, type ByteRange, type Want } from '../../oci/range.ts';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { Provenance, UpstreamBlob } from '../../upstream/responses.ts';
import { isFault, MirrorError, toMirrorError } from '../../util/errors.ts';
import type { Links } from '../access/links.ts';
import type { Upstream } from '../upstreams.ts';
import { ArrivingContent, type ArrivingContext } from './arriving.ts';
import { probeBytes, type FillDemand } from './demand.ts';
import type { Download, DownloadOptions } from './download.ts';
import type { OpenBlob } from './relay.ts';

export interface OpeningOptions extends Pick<DownloadOptions, 'spanBytes' | 'firstByteTimeoutMs'> {
  /** Fetch the rest of a blob after a range. */
  completeRanges: boolean;
}

/** Leases the content that a client wants. */
export type LeaseFor = (want: Want) => Content;

export interface OpeningContext {
  readonly repo: Repo;
  readonly digest: Digest;
  /** Operation and object, for error messages. */
  readonly what: string;
  readonly store: BlobStore;
  readonly links: Links;
  readonly upstream: Upstream;
  readonly source: BlobSource;
  readonly ingest: Ingest;
  readonly download: Download;
  readonly demand: FillDemand;
  readonly arriving: ArrivingContext;
  /** The repo may read what an earlier fill has left. */
  readonly isProven: boolean;
  /** Removes the fill from the table of running fills. */
  readonly unregister: () => void;
  /** Content can be leased from now on; without `leaseFor`, from the ingest. */
  readonly onOpen: (leaseFor?: LeaseFor) => void;
  /** The store cannot take the blob. */
  readonly onRelay: (why: MirrorError) => void;
}

/**
 * The start of a fill until its first content can be read: the first request, its retries and its response, under one
 * deadline.
 */
export class Opening {
  readonly #options: OpeningOptions;
  readonly #context: OpeningContext;
  readonly #ingest: Ingest;
  readonly #download: Download;
  readonly #demand: FillDemand;
  #sendsPlainGet = false;
  /** Provenance of the first response. */
  #provenance: Provenance | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: OpeningOptions, context: OpeningContext) {
    this.#options = options;
    this.#context = context;
    this.#ingest = context.ingest;
    this.#download = context.download;
    this.#demand = context.demand;
  }

  /** The first client now waits for a prefetched blob: restarts the deadline and raises the priority. */
  onFirstReader(): void {
    this.#timer?.refresh();
    this.#download.onFirstReader();
  }

  /**
   * Writes the link: the upstream serves the blob for this repo; under a pattern, only after the bytes are verified.
   */
  confirm(): void {
    const { links, repo, digest } = this.#context;
    if (this.#provenance) links.confirm(repo, digest, this.#provenance);
  }

  /**
   * Resolves to whether the download goes on. Rejects with the upstream's fault, or the reason of the deadline or of
   * `stop`.
   */
  async run(stop: AbortSignal): Promise<boolean> {
    const timeout = new AbortController();
    this.#timer = setTimeout(
      () => timeout.abort(new DOMException('deadline exceeded', 'TimeoutError')),
      this.#options.firstByteTimeoutMs,
    );
    const deadline = AbortSignal.any([timeout.signal, stop]);
    try {
      return await this.#untilOpen(deadline);
    } finally {
      clearTimeout(this.#timer);
    }
  }

  async #untilOpen(deadline: AbortSignal): Promise<boolean> {
    await this.#ingest.reopen();
    if (this.#hasAllWanted()) {
      this.#opened();
      this.#download.demandChanged();
      return true;
    }
    for (;;) {
      try {
        return await this.#openByResponse(deadline);
      } catch (error) {
        if (isFault(error, 'upstream-invalid') && !this.#sendsPlainGet) {
          // The upstream may have mishandled the range: send a plain GET.
          this.#sendsPlainGet = true;
          continue;
        }
        const delay = deadline.aborted
          ? undefined
          : this.#download.retries.after(toMirrorError(error), false);
        if (delay === undefined) throw error;
        // A deadline that passes during the delay keeps the original fault.
        await sleep(delay, undefined, { signal: deadline }).catch(() => {
          throw error;
        });
      }
    }
  }

  /** Whether an earlier fill has left all bytes that are wanted now. */
  #hasAllWanted(): boolean {
    const { size, present } = this.#ingest;
    const { waiting } = this.#demand;
    if (size === undefined || waiting.length === 0 || !this.#context.isProven) return false;
    return waiting.every((want) => {
      const range = resolveWant(want, size);
      // Parts of an unproven file must come from the upstream.
      return range !== undefined && present.has(range) && (isWholeWant(want) || !this.#ingest.isUnproven);
    });
  }

  /** The first response shows whether the repo has the blob, its size, and whether ranges are supported. */
  async #openByResponse(deadline: AbortSignal): Promise<boolean> {
    const range = await this.#firstRange(deadline);
    const { repo } = this.#context;
    const { blob, done } = await this.#download.sendFirst(range, deadline);
    try {
      this.#provenance = blob;
      if (!isFromPattern(repo)) this.confirm();
      if (blob.size !== undefined && blob.size <= smallSize) {
        await this.#takeSmall(blob, blob.size, deadline);
        done();
        return false;
      }
      // Past this, the blob is relayed past the store while its clients still wait.
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
    this.#opened();
    this.#download.demandChanged();
    if (this.#demand.isWholeWanted) this.#ingest.startVerifying();
    return true;
  }

  /** The range to request first; undefined for a plain GET. */
  async #firstRange(deadline: AbortSignal): Promise<ByteRange | undefined> {
    const { store, upstream, repo, digest } = this.#context;
    const { spanBytes } = this.#options;
    const { present } = this.#ingest;
    const want = this.#demand.waiting[0] ?? 'whole';
    let size = this.#ingest.size ?? store.sizeOfChild(digest);
    // A small blob is verified as a whole, so it is requested as a whole.
    const isSmall = size !== undefined && size <= (want === 'whole' ? spanBytes : smallSize);
    if (this.#sendsPlainGet || (isSmall && present.total === 0)) return undefined;
    if (want !== 'whole' && 'last' in want) {
      size ??= (await upstream.client.headBlob(repo, digest, deadline)).size;
    }
    const everything = { start: 0, end: Infinity };
    const fallback = want !== 'whole' && 'start' in want ? want : everything;
    const range = (size === undefined ? undefined : resolveWant(want, size)) ?? fallback;
    const start = present.endOfRun(range.start);
    // The bytes after a range are likely wanted too.
    const follows = this.#options.completeRanges && range.end - range.start > probeBytes;
    const to = this.#demand.isWholeWanted || follows ? (size ?? Infinity) : range.end;
    const end = Math.min(to, start + spanBytes, present.next(start));
    return { start, end: Math.max(end, start + 1) };
  }

  /** Takes a blob small enough to be verified before any byte is served. */
  async #takeSmall(blob: UpstreamBlob, size: number, deadline: AbortSignal): Promise<void> {
    const { store, upstream, source, repo, digest, what, unregister } = this.#context;
    let { body } = blob;
    if (blob.start > 0 || blob.end !== size) {
      body.discard();
      ({ body } = await source.fetch(undefined, deadline));
    }
    // An empty blob may come as a 416.
    const bytes = size === 0 ? Buffer.alloc(0) : await upstream.client.bytes(what, body, size, deadline);
    if (!hashesTo(bytes, digest)) {
      throw new MirrorError('digest-mismatch', `${what}: the bytes do not match the digest`);
    }
    if (isFromPattern(repo)) this.confirm();
    const content = store.put(bytes, {
      digest,
      mediaType: blobMediaType,
      children: [],
    });
    unregister();
    this.#opened(() => content);
    await this.#ingest.suspend();
  }

  /** The store cannot take the blob: its waiting clients get it relayed; later requests start over. */
  #relay(blob: UpstreamBlob, why: MirrorError): void {
    const { upstream, arriving, unregister, onRelay } = this.#context;
    onRelay(why);
    // The open response serves the first client that wants the whole, if a relay slot is free.
    const hasAll = blob.start === 0 && blob.end === blob.size;
    const done = hasAll ? upstream.relaySlots.tryTake() : undefined;
    const spare: OpenBlob[] = done ? [{ blob, done }] : [];
    if (!done) blob.body.discard();
    unregister();
    this.#opened((want) => {
      const open = want === 'whole' ? spare.pop() : undefined;
      return new ArrivingContent(arriving, { size: () => blob.size, lease: undefined, open });
    });
    for (const { blob: unused, done: release } of spare) {
      unused.body.discard();
      release();
    }
  }

  #opened(leaseFor?: LeaseFor): void {
    this.#download.retries.progress();
    this.#context.onOpen(leaseFor);
  }
}
