import { setTimeout as sleep } from 'node:timers/promises';
import type { Digest } from '../../oci/digest.ts';
import type { Verification } from '../../store/ingest/verifier.ts';
import type { UpstreamBlob } from '../../upstream/answers.ts';
import { toFault } from '../../upstream/http/transport.ts';
import type { BlobSource } from '../../upstream/registry-client.ts';
import type { Clock } from '../../util/clock.ts';
import { MirrorError, toMirrorError } from '../../util/errors.ts';
import type { Outlet } from '../../util/outlet.ts';
import type { Slots } from '../../util/slots.ts';
import { Retries } from './retries.ts';

/** An answer on its way; `done` gives its connection's place back. */
export interface OpenBlob {
  readonly blob: UpstreamBlob;
  readonly done: () => void;
}

export interface RelayContext {
  readonly source: BlobSource;
  readonly clock: Clock;
  /** Relays at once: they have connections of their own, since slow clients hold them. */
  readonly slots: Slots;
  /** Over everything before the first byte of an answer. */
  readonly firstByteTimeoutMs: number;
  readonly giveUpAfterMs: number;
}

/** What a relay has to bring. */
export interface RelayRange {
  readonly start: number;
  /** Undefined while the size is not known. */
  readonly end: number | undefined;
  /** Of the whole; undefined while it is not known. */
  readonly size: number | undefined;
  /** Continues the hash of what the reader has already had; undefined for a part, which is not held back. */
  readonly prefix: { readonly length: number; readonly verification: Verification } | undefined;
}

/**
 * What the store cannot take: an upstream body of its own for one reader, at that reader's pace. Whoever reads the whole
 * does not get the last byte before the digest is verified, as from a file.
 */
export class Relay {
  readonly #digest: Digest;
  readonly #context: RelayContext;
  /** An answer that is open already. */
  #spare: OpenBlob | undefined;
  #done: (() => void) | undefined;
  readonly #released = new AbortController();

  constructor(digest: Digest, context: RelayContext, spare?: OpenBlob) {
    this.#digest = digest;
    this.#context = context;
    this.#spare = spare;
    this.#done = spare?.done;
  }

  /** Waits for a connection, not longer than a client waits for its first byte. Throws `upstream-busy`. */
  async prepare(signal = AbortSignal.timeout(this.#context.firstByteTimeoutMs)): Promise<void> {
    const either = AbortSignal.any([signal, this.#released.signal]);
    this.#done ??= await this.#context.slots.take(either).catch((cause: unknown) => {
      const what = `GET blob ${this.#digest}: no free connection past the store in time`;
      throw new MirrorError('upstream-busy', what, { cause, retryAfterMs: 5000 });
    });
  }

  /** Writes what is to be brought, as often as its upstream breaks off. */
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
        await this.#once(tail, range, gone, retries);
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

  async #once(tail: Tail, range: RelayRange, gone: AbortSignal, retries: Retries): Promise<void> {
    const what = `GET blob ${this.#digest}`;
    const end = range.end ?? Infinity;
    if (tail.offset >= end) return;
    const { body, start, end: promised, size } = await this.#fetch(tail.offset, end, gone);
    if (size !== undefined && range.size !== undefined && size !== range.size) {
      body.discard();
      throw new MirrorError('upstream-invalid', `${what}: one of ${size} bytes, ${range.size} expected`);
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

/** Passes bytes on, one byte late, and hashes them. */
class Tail {
  /** Of the next byte that is to come. */
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

  /** Everything has come: the last byte leaves if the digest is right. */
  async flush(digest: Digest): Promise<void> {
    if (this.#prefix && !(await this.#prefix.verification.matches())) {
      throw new MirrorError('digest-mismatch', `blob ${digest}: the upstream's bytes do not hash to it`);
    }
    await this.#send(this.#last);
  }

  async #send(bytes: Buffer): Promise<void> {
    if (bytes.length > 0) await this.#outlet.write(bytes);
  }

  async #feed(from: number, bytes: Buffer): Promise<void> {
    if (!this.#prefix) return;
    // The worker takes its buffer over, so it gets a copy.
    const copy = new Uint8Array(bytes.subarray(Math.max(0, this.#prefix.length - from)));
    if (copy.length > 0) await this.#prefix.verification.feed(copy);
  }
}
