import { blobMediaType, smallSize, type Content } from '../oci/content.ts';
import { hashesTo, type Digest } from '../oci/digest.ts';
import type { ByteRange } from '../oci/range.ts';
import type { Repo } from '../oci/repo.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Ingest } from '../store/ingest.ts';
import type { RegistryClient, UpstreamBlob } from '../upstream/registry-client.ts';
import { toFault } from '../upstream/transport.ts';
import { isFault, MirrorError, toMirrorError } from '../util/errors.ts';
import type { Logger } from '../util/log.ts';
import { Slots } from '../util/slots.ts';
import type { Access } from './access.ts';
import { RelayContent } from './relay.ts';
import type { Upstreams } from './upstreams.ts';

export interface FillOptions {
  /** Blob bodies at once, over all upstreams. */
  maxConnections: number;
  /** Over everything before the first byte: waiting in line, tokens, redirects, retries. */
  firstByteTimeoutMs: number;
}

export interface FillContext {
  readonly store: BlobStore;
  readonly access: Access;
  readonly log: Logger;
  readonly onFault: (error: MirrorError) => void;
  readonly upstreams: Upstreams;
}

/**
 * The downloads in progress: one for each digest, owned by nobody's request. A fill ends by commit or by fault, not by a
 * client leaving. A commit has its catalog row before the fill leaves the table, and a failed fill leaves the table
 * before its readers hear of it: so a newcomer finds the content in one of the two, and nobody joins a dead fill.
 */
export class Fills {
  readonly #options: FillOptions;
  readonly #context: FillContext;
  readonly #slots: Slots;
  readonly #running = new Map<Digest, Fill>();

  constructor(options: FillOptions, context: FillContext) {
    this.#options = options;
    this.#context = context;
    this.#slots = new Slots(options.maxConnections);
  }

  get active(): number {
    return this.#running.size;
  }

  has(digest: Digest): boolean {
    return this.#running.has(digest);
  }

  /** The size of what is arriving, if it is known. */
  sizeOf(digest: Digest): number | undefined {
    return this.#running.get(digest)?.size;
  }

  /** The fill whose upstream has not answered yet, and for which repo it asked. */
  opening(digest: Digest): { repo: Repo; settled: Promise<unknown> } | undefined {
    const fill = this.#running.get(digest);
    return fill && !fill.isOpen ? fill : undefined;
  }

  /**
   * The content, as soon as the upstream's headers are in: of a new fill (`miss`), of one that was there (`joined`), or
   * of one that has nothing left to do but to be committed (`hit`).
   */
  join(repo: Repo, digest: Digest): { content: Promise<Content>; result: 'miss' | 'joined' | 'hit' } {
    const running = this.#running.get(digest);
    if (running) return { content: running.lease(), result: running.isVerified ? 'hit' : 'joined' };
    const fill = new Fill(repo, digest, this.#options, {
      ...this.#context,
      slots: this.#slots,
      leave: () => this.#running.delete(digest),
    });
    this.#running.set(digest, fill);
    const content = fill.lease();
    fill.start();
    return { content, result: 'miss' };
  }

  /**
   * Ends what nobody reads (`idle`), or everything; except what has all its bytes. Resolves when all that run now have
   * ended.
   */
  async stop(which: 'idle' | 'all'): Promise<void> {
    const fills = [...this.#running.values()];
    for (const fill of fills) if (which === 'all' || !fill.hasReaders) fill.stop();
    await Promise.all(fills.map((fill) => fill.ended));
  }
}

interface RunContext extends FillContext {
  readonly slots: Slots;
  readonly leave: () => void;
}

class Fill {
  readonly repo: Repo;
  /** Resolves once the upstream has answered, or not. */
  readonly settled: Promise<unknown>;
  ended: Promise<void> = Promise.resolve();
  readonly #digest: Digest;
  readonly #options: FillOptions;
  readonly #context: RunContext;
  readonly #waiting: { resolve: (content: Content) => void; reject: (error: MirrorError) => void }[] = [];
  readonly #settle: () => void;
  readonly #stop = new AbortController();
  #lease: (() => Content) | undefined;
  #ingest: Ingest | undefined;

  constructor(repo: Repo, digest: Digest, options: FillOptions, context: RunContext) {
    this.repo = repo;
    this.#digest = digest;
    this.#options = options;
    this.#context = context;
    const { promise, resolve } = Promise.withResolvers<undefined>();
    this.settled = promise;
    this.#settle = () => resolve(undefined);
  }

  get isOpen(): boolean {
    return this.#lease !== undefined;
  }

  get size(): number | undefined {
    return this.#ingest?.size;
  }

  get isVerified(): boolean {
    return this.#ingest?.isVerified ?? false;
  }

  /** A lease, taken in the tick in which the upstream answers, or in this one if it has. */
  lease(): Promise<Content> {
    if (this.#lease) return Promise.resolve(this.#lease());
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  start(): void {
    this.ended = this.#run().catch((error: unknown) => this.#fail(toMirrorError(error)));
  }

  get hasReaders(): boolean {
    return this.#ingest?.hasReaders ?? false;
  }

  stop(): void {
    this.#stop.abort(new MirrorError('draining', `blob ${this.#digest}: shutting down`));
  }

  async #run(): Promise<void> {
    const { client, slots } = this.#context.upstreams.of(this.repo);
    const deadline = AbortSignal.any([
      AbortSignal.timeout(this.#options.firstByteTimeoutMs),
      this.#stop.signal,
    ]);
    const done = await this.#takeSlots([slots, this.#context.slots], deadline);
    try {
      const blob = await client.blob(this.repo, this.#digest, undefined, deadline);
      this.#context.access.confirm(this.repo, this.#digest, client.authenticated);
      if (blob.size !== undefined && blob.size <= smallSize)
        await this.#takeSmall(client, blob, blob.size, deadline);
      else await this.#takeLarge(client, blob);
    } finally {
      done();
    }
  }

  /** Small enough to be verified before anything of it is shown. */
  async #takeSmall(
    client: RegistryClient,
    { body }: UpstreamBlob,
    size: number,
    deadline: AbortSignal,
  ): Promise<void> {
    const what = `GET ${this.repo.key} blob ${this.#digest}`;
    const bytes = await client.bytes(what, body, size, deadline);
    if (!hashesTo(bytes, this.#digest)) {
      throw new MirrorError('digest-mismatch', `${what}: the bytes do not hash to it`);
    }
    const content = this.#context.store.put(bytes, {
      digest: this.#digest,
      mediaType: blobMediaType,
      children: [],
    });
    this.#context.leave();
    this.#open(() => content);
  }

  async #takeLarge(client: RegistryClient, blob: UpstreamBlob): Promise<void> {
    const { store } = this.#context;
    const ingest = store.ingest(this.#digest);
    try {
      await ingest.begin(blob.size);
    } catch (error) {
      if (!isFault(error, 'store-full')) throw error;
      this.#relay(client, blob, error);
      return;
    }
    this.#ingest = ingest;
    this.#open(() => ingest.lease(blobMediaType));
    const size = await this.#receive(blob, ingest);
    await ingest.verify(size);
    await store.commit(ingest, blobMediaType);
    this.#context.leave();
  }

  async #receive({ body, size }: UpstreamBlob, ingest: Ingest): Promise<number> {
    const what = `GET ${this.repo.key} blob ${this.#digest}`;
    let offset = 0;
    const take = async (chunks: Buffer[]): Promise<void> => {
      await ingest.write(offset, chunks);
      for (const chunk of chunks) offset += chunk.length;
    };
    await body.pipe(take, this.#stop.signal).catch((error: unknown) => {
      throw toFault(what, error);
    });
    if (size !== undefined && offset !== size) {
      throw new MirrorError('upstream-down', `${what}: ended after ${offset} of ${size} bytes`);
    }
    return offset;
  }

  /** The store cannot take it: those who wait get it past the store, and newcomers see for themselves. */
  #relay(client: RegistryClient, blob: UpstreamBlob, why: MirrorError): void {
    this.#context.log.warn(
      { err: why, repo: this.repo.key, digest: this.#digest },
      'a blob is passed through uncached',
    );
    const { relaySlots } = this.#context.upstreams.of(this.repo);
    const context = {
      verifier: this.#context.store.verifier,
      slots: relaySlots,
      fetch: (range: ByteRange | undefined) =>
        client.blob(this.repo, this.#digest, range, AbortSignal.timeout(this.#options.firstByteTimeoutMs)),
    };
    // The answer that is open already goes to the first who waits, if it may keep its connection.
    const done = relaySlots.tryTake();
    const spare = done ? [{ ...blob, done }] : [];
    if (!done) blob.body.discard();
    this.#context.leave();
    this.#open(() => new RelayContent(this.#digest, blob.size, context, spare.pop()));
  }

  #open(lease: () => Content): void {
    this.#lease = lease;
    for (const { resolve } of this.#waiting.splice(0)) resolve(lease());
    this.#settle();
  }

  async #fail(error: MirrorError): Promise<void> {
    this.#context.leave();
    if (this.#ingest) {
      // Nobody waits for its answer any more, so nobody else would tell.
      this.#context.onFault(error);
      this.#context.log[error.row.level](
        { err: error, repo: this.repo.key, digest: this.#digest },
        'a fill failed',
      );
    }
    for (const { reject } of this.#waiting.splice(0)) reject(error);
    this.#settle();
    await this.#ingest?.fail(error);
  }

  async #takeSlots(slots: readonly Slots[], deadline: AbortSignal): Promise<() => void> {
    const taken: (() => void)[] = [];
    const giveBack = (): void => taken.forEach((give) => give());
    try {
      for (const each of slots) taken.push(await each.take(deadline));
    } catch (cause) {
      giveBack();
      throw new MirrorError(
        'upstream-busy',
        `GET ${this.repo.key} blob ${this.#digest}: no free connection in time`,
        {
          cause,
          retryAfterMs: 5000,
        },
      );
    }
    return giveBack;
  }
}
