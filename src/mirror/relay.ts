import type { Writable } from 'node:stream';
import { blobMediaType, type Content } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { ByteRange } from '../oci/range.ts';
import type { Verification, Verifier } from '../store/verifier.ts';
import type { UpstreamBlob } from '../upstream/registry-client.ts';
import { MirrorError } from '../util/errors.ts';
import { Outlet } from '../util/outlet.ts';
import type { Slots } from '../util/slots.ts';

export interface RelayContext {
  readonly verifier: Verifier;
  /** Relays at once: they have connections of their own, since slow clients hold them. */
  readonly slots: Slots;
  /** Asks the upstream for the bytes, or those of a range. */
  readonly fetch: (range: ByteRange | undefined) => Promise<UpstreamBlob>;
}

/**
 * A blob that the store cannot take: each reader gets an upstream body of its own, at its own pace. Whoever reads the
 * whole does not get the last byte before the digest is verified, as from a stored one.
 */
export class RelayContent implements Content {
  readonly digest: Digest;
  readonly size: number | undefined;
  readonly mediaType = blobMediaType;
  readonly #context: RelayContext;
  /** An answer that is open already, for the first who wants it. */
  #spare: UpstreamBlob | undefined;

  constructor(digest: Digest, size: number | undefined, context: RelayContext, spare?: UpstreamBlob) {
    this.digest = digest;
    this.size = size;
    this.#context = context;
    this.#spare = spare;
  }

  prepare(): Promise<void> {
    return Promise.resolve();
  }

  async copyTo(sink: Writable, range?: ByteRange): Promise<void> {
    const whole = range === undefined || (range.start === 0 && range.end === this.size);
    const outlet = new Outlet(sink);
    const done = await this.#context.slots.take();
    const verification = whole ? this.#context.verifier.start(this.digest) : undefined;
    try {
      const blob = await this.#take(whole ? undefined : range);
      if (blob.size !== this.size) {
        blob.body.discard();
        throw new MirrorError(
          'upstream-invalid',
          `blob ${this.digest}: its size changed from ${this.size} to ${blob.size}`,
        );
      }
      await this.#copy(blob, outlet, verification);
    } finally {
      done();
      outlet.close();
      await verification?.end();
    }
  }

  release(): void {
    this.#spare?.body.discard();
    this.#spare = undefined;
  }

  async #take(range: ByteRange | undefined): Promise<UpstreamBlob> {
    if (range) return this.#context.fetch(range);
    const spare = this.#spare;
    this.#spare = undefined;
    return spare ?? this.#context.fetch(undefined);
  }

  async #copy({ body }: UpstreamBlob, outlet: Outlet, verification: Verification | undefined): Promise<void> {
    let last: Uint8Array = new Uint8Array(0);
    await body.pipe(async (chunks) => {
      const bytes = Buffer.concat([last, ...chunks]);
      last = Buffer.from(bytes.subarray(-1));
      const ready = bytes.subarray(0, -1);
      // The worker takes its buffer over, so it gets a copy.
      await Promise.all([outlet.write(ready), verification?.feed(new Uint8Array(ready))]);
    });
    await verification?.feed(new Uint8Array(last));
    if (verification && !(await verification.matches())) {
      throw new MirrorError('digest-mismatch', `blob ${this.digest}: the upstream's bytes do not hash to it`);
    }
    await outlet.end(last);
  }
}
