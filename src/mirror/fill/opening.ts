import { setTimeout as sleep } from 'node:timers/promises';
import { blobMediaType, smallSize, type Content } from '../../oci/content.ts';
import { hashesTo, type Digest } from '../../oci/digest.ts';
import { isWholeWant, resolveWant, type ByteRange, type Want } from '../../oci/range.ts';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import type { Provenance, UpstreamBlob } from '../../upstream/answers.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import { isFault, MirrorError, toMirrorError } from '../../util/errors.ts';
import type { Access } from '../access/links.ts';
import type { Upstream } from '../upstreams.ts';
import { ArrivingContent, type ArrivingContext } from './arriving.ts';
import { probeBytes, type FillDemand } from './demand.ts';
import type { Download, DownloadOptions } from './download.ts';
import type { OpenBlob } from './relay.ts';

export interface OpeningOptions extends Pick<DownloadOptions, 'spanBytes' | 'firstByteTimeoutMs'> {
  /** After ranges of a blob its rest follows. */
  completeRanges: boolean;
}

/** Gives a client that asks for so much its content. */
export type Give = (want: Want) => Content;

export interface OpeningContext {
  readonly repo: Repo;
  readonly digest: Digest;
  /** What is being done to what, for faults. */
  readonly what: string;
  readonly store: BlobStore;
  readonly access: Access;
  readonly upstream: Upstream;
  readonly source: BlobSource;
  readonly ingest: Ingest;
  readonly download: Download;
  readonly demand: FillDemand;
  readonly arriving: ArrivingContext;
  /** The repo may have what an earlier fill has left. */
  readonly isProven: boolean;
  /** From then on nobody finds the fill. */
  readonly leave: () => void;
  /** There is something to give, from this tick on; `give` is absent where it comes out of the ingest. */
  readonly onOpen: (give?: Give) => void;
  /** The store can take nothing of it. */
  readonly onRelay: (why: MirrorError) => void;
}

/**
 * What a fill does from its start until it has something to give: the first question, asked again where that makes sense,
 * and its answer. One deadline lies over all of it.
 */
export class Opening {
  readonly #options: OpeningOptions;
  readonly #context: OpeningContext;
  readonly #ingest: Ingest;
  readonly #download: Download;
  readonly #demand: FillDemand;
  #asksPlainly = false;
  /** How the upstream has given it. */
  #given: Provenance | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: OpeningOptions, context: OpeningContext) {
    this.#options = options;
    this.#context = context;
    this.#ingest = context.ingest;
    this.#download = context.download;
    this.#demand = context.demand;
  }

  /** The first client waits for it: what was fetched ahead has its time anew, and counts for more. */
  awaited(): void {
    this.#timer?.refresh();
    this.#download.awaited();
  }

  /** The repo has it: since the upstream says so, or, for one under a pattern, since the bytes are right. */
  confirm(): void {
    const { access, repo, digest } = this.#context;
    if (this.#given) access.confirm(repo, digest, this.#given);
  }

  /**
   * Resolves to whether more is to come, when something has been given. Rejects with the upstream's fault, or the reason of
   * the deadline or of `stop`.
   */
  async run(stop: AbortSignal): Promise<boolean> {
    const late = new AbortController();
    this.#timer = setTimeout(
      () => late.abort(new DOMException('too late', 'TimeoutError')),
      this.#options.firstByteTimeoutMs,
    );
    const deadline = AbortSignal.any([late.signal, stop]);
    try {
      return await this.#before(deadline);
    } finally {
      clearTimeout(this.#timer);
    }
  }

  async #before(deadline: AbortSignal): Promise<boolean> {
    await this.#ingest.reopen();
    if (this.#hasAllWanted()) {
      this.#opened();
      this.#download.demandChanged();
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
    const { waiting } = this.#demand;
    if (size === undefined || waiting.length === 0 || !this.#context.isProven) return false;
    return waiting.every((want) => {
      const range = resolveWant(want, size);
      // A part of what is not proven has to come from the upstream.
      return range !== undefined && present.has(range) && (isWholeWant(want) || !this.#ingest.isUnproven);
    });
  }

  /** The first answer shows whether the repo may have the blob, how large it is, and whether there are ranges. */
  async #first(deadline: AbortSignal): Promise<boolean> {
    const range = await this.#firstRange(deadline);
    const { repo } = this.#context;
    const { blob, done } = await this.#download.ask(range, deadline);
    try {
      this.#given = blob;
      if (!isFromPattern(repo)) this.confirm();
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
    this.#opened();
    this.#download.demandChanged();
    if (this.#demand.isWholeWanted) this.#ingest.startVerifying();
    return true;
  }

  /** What to ask for first; undefined for a plain GET. */
  async #firstRange(deadline: AbortSignal): Promise<ByteRange | undefined> {
    const { store, upstream, repo, digest } = this.#context;
    const { spanBytes } = this.#options;
    const { present } = this.#ingest;
    const want = this.#demand.waiting[0] ?? 'whole';
    let size = this.#ingest.size ?? store.sizeOfChild(digest);
    // What is verified as a whole is asked for as a whole.
    const isOne = size !== undefined && size <= (want === 'whole' ? spanBytes : smallSize);
    if (this.#asksPlainly || (isOne && present.total === 0)) return undefined;
    if (want !== 'whole' && 'last' in want) {
      size ??= (await upstream.client.headBlob(repo, digest, deadline)).size;
    }
    const open = { start: 0, end: Infinity };
    const known = want !== 'whole' && 'start' in want ? want : open;
    const range = (size === undefined ? undefined : resolveWant(want, size)) ?? known;
    const start = present.endOfRun(range.start);
    // What follows a range will be wanted too.
    const follows = this.#options.completeRanges && range.end - range.start > probeBytes;
    const to = this.#demand.isWholeWanted || follows ? (size ?? Infinity) : range.end;
    const end = Math.min(to, start + spanBytes, present.next(start));
    return { start, end: Math.max(end, start + 1) };
  }

  /** Small enough to be verified before anything of it is shown. */
  async #takeSmall(blob: UpstreamBlob, size: number, deadline: AbortSignal): Promise<void> {
    const { store, upstream, source, repo, digest, what, leave } = this.#context;
    let { body } = blob;
    if (blob.start > 0 || blob.end !== size) {
      body.discard();
      ({ body } = await source.fetch(undefined, deadline));
    }
    // An empty one may have come as the refusal of a range.
    const bytes = size === 0 ? Buffer.alloc(0) : await upstream.client.bytes(what, body, size, deadline);
    if (!hashesTo(bytes, digest)) {
      throw new MirrorError('digest-mismatch', `${what}: the bytes do not hash to it`);
    }
    if (isFromPattern(repo)) this.confirm();
    const content = store.put(bytes, {
      digest,
      mediaType: blobMediaType,
      children: [],
    });
    leave();
    this.#opened(() => content);
    await this.#ingest.suspend();
  }

  /** The store can take nothing of it: those who wait get it past the store, and newcomers see for themselves. */
  #relay(blob: UpstreamBlob, why: MirrorError): void {
    const { upstream, arriving, leave, onRelay } = this.#context;
    onRelay(why);
    // The answer that is open already goes to the first who waits for the whole, if it may keep its connection.
    const hasAll = blob.start === 0 && blob.end === blob.size;
    const done = hasAll ? upstream.relaySlots.tryTake() : undefined;
    const spare: OpenBlob[] = done ? [{ blob, done }] : [];
    if (!done) blob.body.discard();
    leave();
    this.#opened((want) => {
      const open = want === 'whole' ? spare.pop() : undefined;
      return new ArrivingContent(arriving, { size: () => blob.size, lease: undefined, open });
    });
    for (const { blob: unused, done: give } of spare) {
      unused.body.discard();
      give();
    }
  }

  #opened(give?: Give): void {
    this.#download.retries.progress();
    this.#context.onOpen(give);
  }
}
