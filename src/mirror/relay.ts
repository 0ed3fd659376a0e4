import type { Writable } from 'node:stream';
import { blobMediaType, type Content } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { ByteRange } from '../oci/range.ts';
import type { Verification, Verifier } from '../store/verifier.ts';
import type { Body } from '../upstream/body.ts';
import type { UpstreamBlob } from '../upstream/registry-client.ts';
import { MirrorError } from '../util/errors.ts';
import { Outlet } from '../util/outlet.ts';
import type { Slots } from '../util/slots.ts';

/** An answer on its way; `done` gives its connection's place back. */
export interface OpenBlob extends UpstreamBlob {
  readonly done: () => void;
}

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
  #spare: OpenBlob | undefined;

  constructor(digest: Digest, size: number | undefined, context: RelayContext, spare?: OpenBlob) {
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
    const { body, size, done } = await this.#take(whole ? undefined : range);
    const verification = whole ? this.#context.verifier.start(this.digest) : undefined;
    try {
      if (size !== this.size) throw this.#wrong(`its size changed from ${this.size} to ${size}`);
      await this.#copy(body, outlet, whole ? size : range.end - range.start, verification);
    } finally {
      body.discard();
      done();
      outlet.close();
      await verification?.end();
    }
  }

  release(): void {
    this.#spare?.body.discard();
    this.#spare?.done();
    this.#spare = undefined;
  }

  async #take(range: ByteRange | undefined): Promise<OpenBlob> {
    const spare = this.#spare;
    if (spare && !range) {
      this.#spare = undefined;
      return spare;
    }
    const done = await this.#context.slots.take();
    try {
      return { ...(await this.#context.fetch(range)), done };
    } catch (error) {
      done();
      throw error;
    }
  }

  /** `length`: how many bytes there must be; what was promised to the client is neither exceeded nor fallen short of. */
  async #copy(
    body: Body,
    outlet: Outlet,
    length: number | undefined,
    verification: Verification | undefined,
  ): Promise<void> {
    let last: Uint8Array = new Uint8Array(0);
    let received = 0;
    await body.pipe(async (chunks) => {
      for (const chunk of chunks) received += chunk.length;
      if (length !== undefined && received > length) throw this.#wrong(`more than ${length} bytes came`);
      const bytes = Buffer.concat([last, ...chunks]);
      last = Buffer.from(bytes.subarray(-1));
      const ready = bytes.subarray(0, -1);
      // The worker takes its buffer over, so it gets a copy.
      await Promise.all([outlet.write(ready), verification?.feed(new Uint8Array(ready))]);
    });
    if (length !== undefined && received < length) throw this.#wrong(`${received} of ${length} bytes came`);
    await verification?.feed(new Uint8Array(last));
    if (verification && !(await verification.matches())) {
      throw new MirrorError('digest-mismatch', `blob ${this.digest}: the upstream's bytes do not hash to it`);
    }
    await outlet.end(last);
  }

  #wrong(why: string): MirrorError {
    return new MirrorError('upstream-invalid', `blob ${this.digest}: ${why}`);
  }
}
