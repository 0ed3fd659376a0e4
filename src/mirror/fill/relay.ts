import { setTimeout as sleep } from 'node:timers/promises';
import type { Digest } from '../../oci/digest.ts';
import type { Verification } from '../../store/ingest/verifier.ts';
import { toFault } from '../../upstream/http/transport.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { UpstreamBlob } from '../../upstream/responses.ts';
import type { Clock } from '../../util/clock.ts';
import { MirrorError, toMirrorError } from '../../util/errors.ts';
import type { Outlet } from '../../util/outlet.ts';
import type { Slots } from '../../util/slots.ts';
import { Retries } from './retries.ts';

/** An open upstream response; `done` releases its connection slot. */
export interface OpenBlob {
  readonly blob: UpstreamBlob;
  readonly done: () => void;
}

export interface RelayContext {
  readonly source: BlobSource;
  readonly clock: Clock;
  /** Relays have connections of their own, since slow clients hold them. */
  readonly slots: Slots;
  /** Covers everything before the first byte of a response. */
  readonly firstByteTimeoutMs: number;
  readonly giveUpAfterMs: number;
}

/** The range that a relay sends. */
export interface RelayRange {
  readonly start: number;
  /** Undefined while the size is unknown. */
  readonly end: number | undefined;
  /** Size of the whole blob; undefined while unknown. */
  readonly size: number | undefined;
  /** Continues the hash of the bytes the reader already has. Undefined for a partial range, which is not verified. */
  readonly prefix: { readonly length: number; readonly verification: Verification } | undefined;
}

/**
 * Streams a blob past the store to one reader, at that reader's pace. A reader of the whole blob gets the last byte
 * only after the digest is verified, as from a file.
 */
export class Relay {
  readonly #digest: Digest;
  readonly #context: RelayContext;
  /** An open response, not used yet. */
  #spare: OpenBlob | undefined;
  #done: (() => void) | undefined;
  readonly #released = new AbortController();

  constructor(digest: Digest, context: RelayContext, spare?: OpenBlob) {
    this.#digest = digest;
    this.#context = context;
    this.#spare = spare;
    this.#done = spare?.done;
  }

  /** Waits for a connection slot, at most the first-byte timeout. Throws `upstream-busy`. */
  async prepare(signal = AbortSignal.timeout(this.#context.firstByteTimeoutMs)): Promise<void> {
    const either = AbortSignal.any([signal, this.#released.signal]);
    this.#done ??= await this.#context.slots.take(either).catch((cause: unknown) => {
      const what = `GET blob ${this.#digest}: no free connection for an uncached blob before the deadline`;
      throw new MirrorError('upstream-busy', what, { cause, retryAfterMs: 5000 });
    });
  }

  /** Writes the range, and resumes where the upstream breaks off. */
  async copy(outlet: Outlet, range: RelayRange): Promise<void> {
    const { gone } = outlet;
    await this.prepare(gone);
    const { clock, giveUpAfterMs } = this.#context;
    const retries = new Retries(clock, giveUpAfterMs);
    retries.progress();
    const tail = new Tail(outlet, range);
    for (;;) {
      const before = tail.offset;
      try {
        await this.#copyOnce(tail, range, gone, retries);
        break;
      } catch (error) {
        const delay = retries.after(toMirrorError(error), tail.offset > before);
        if (delay === undefined || gone.aborted) throw error;
        await sleep(delay, undefined, { signal: gone }).catch(() => undefined);
      }
    }
    await tail.flush(this.#digest);
  }

  release(): void {
    this.#released.abort();
    this.#spare?.blob.body.discard();
    this.#spare = undefined;
    this.#done?.();
    this.#done = undefined;
  }

  async #copyOnce(tail: Tail, range: RelayRange, gone: AbortSignal, retries: Retries): Promise<void> {
    const what = `GET blob ${this.#digest}`;
    const end = range.end ?? Infinity;
    if (tail.offset >= end) return;
    const { body, start, end: promised, size } = await this.#fetch(tail.offset, end, gone);
    if (size !== undefined && range.size !== undefined && size !== range.size) {
      body.discard();
      throw new MirrorError('upstream-invalid', `${what}: ${size} bytes, expected ${range.size}`);
    }
    let offset = start;
    const take = async (chunks: Buffer[]): Promise<boolean> => {
      const bytes = Buffer.concat(chunks);
      const wanted = bytes.subarray(Math.max(0, tail.offset - offset), Math.max(0, end - offset));
      offset += bytes.length;
      if (wanted.length > 0) await tail.write(wanted);
      retries.progress();
      return offset < end;
    };
    if (start !== promised) {
      await body.pipe(take, gone).catch((error: unknown) => {
        throw toFault(what, error);
      });
    }
    const expected = Math.min(end, promised ?? offset);
    if (tail.offset < expected || (end !== Infinity && tail.offset < end)) {
      throw new MirrorError('upstream-down', `${what}: ended after ${offset} of ${expected} bytes`);
    }
  }

  async #fetch(start: number, end: number, gone: AbortSignal): Promise<UpstreamBlob> {
    const spare = this.#spare;
    this.#spare = undefined;
    if (spare && spare.blob.start <= start) return spare.blob;
    spare?.blob.body.discard();
    const deadline = AbortSignal.any([AbortSignal.timeout(this.#context.firstByteTimeoutMs), gone]);
    const whole = start === 0 && end === Infinity;
    return this.#context.source.fetch(whole ? undefined : { start, end }, deadline, true);
  }
}

/** Passes bytes on and hashes them, holding back the last byte. */
class Tail {
  /** Offset of the next byte to receive. */
  offset: number;
  readonly #outlet: Outlet;
  readonly #prefix: RelayRange['prefix'];
  #last = Buffer.alloc(0);

  constructor(outlet: Outlet, { start, prefix }: RelayRange) {
    this.offset = start;
    this.#outlet = outlet;
    this.#prefix = prefix;
  }

  async write(bytes: Buffer): Promise<void> {
    const ready = Buffer.concat([this.#last, bytes.subarray(0, -1)]);
    this.#last = Buffer.from(bytes.subarray(-1));
    const from = this.offset;
    this.offset += bytes.length;
    await Promise.all([this.#feed(from, bytes), this.#send(ready)]);
  }

  /** All bytes have been received: sends the last one if the digest matches. */
  async flush(digest: Digest): Promise<void> {
    if (this.#prefix && !(await this.#prefix.verification.matches())) {
      throw new MirrorError(
        'digest-mismatch',
        `blob ${digest}: the upstream's bytes do not match the digest`,
      );
    }
    await this.#send(this.#last);
  }

  async #send(bytes: Buffer): Promise<void> {
    if (bytes.length > 0) await this.#outlet.write(bytes);
  }

  async #feed(from: number, bytes: Buffer): Promise<void> {
    if (!this.#prefix) return;
    // The worker takes ownership of the buffer, so it gets a copy.
    const copy = new Uint8Array(bytes.subarray(Math.max(0, this.#prefix.length - from)));
    if (copy.length > 0) await this.#prefix.verification.feed(copy);
  }
}
