import type { Writable } from 'node:stream';
import { blobMediaType, type Content } from '../../oci/content.ts';
import type { Digest } from '../../oci/digest.ts';
import type { ByteRange } from '../../oci/range.ts';
import type { IngestLease } from '../../store/ingest/ingest.ts';
import type { Verifier } from '../../store/ingest/verifier.ts';
import { writeTo, type Outlet } from '../../util/outlet.ts';
import type { Relay } from './relay.ts';

export interface ArrivingParts {
  readonly digest: Digest;
  readonly size: () => number | undefined;
  readonly verifier: Verifier;
  /** Absent where the store can take nothing of it. */
  readonly lease: IngestLease | undefined;
  readonly relay: Relay;
}

/** Content that is on its way: out of the file of its fill, and past the store from where that can take no more. */
export class ArrivingContent implements Content {
  readonly digest: Digest;
  readonly mediaType = blobMediaType;
  readonly #parts: ArrivingParts;

  constructor(parts: ArrivingParts) {
    this.digest = parts.digest;
    this.#parts = parts;
  }

  get size(): number | undefined {
    return this.#parts.size();
  }

  async prepare(): Promise<void> {
    const { lease, relay } = this.#parts;
    if (!lease) await relay.prepare();
  }

  copyTo(sink: Writable, range?: ByteRange): Promise<void> {
    const { lease } = this.#parts;
    return writeTo(sink, async (outlet) => {
      const start = range?.start ?? 0;
      const at = lease ? await lease.copy(outlet, range) : start;
      if (at < (range?.end ?? this.size ?? Infinity)) await this.#relay(outlet, at, range);
    });
  }

  release(): void {
    this.#parts.lease?.release();
    this.#parts.relay.release();
  }

  async #relay(outlet: Outlet, start: number, range: ByteRange | undefined): Promise<void> {
    const { digest, lease, relay, verifier } = this.#parts;
    const { size } = this;
    const end = range?.end ?? size;
    const whole = range === undefined || (range.start === 0 && range.end === this.size);
    if (!whole) {
      await relay.copy(outlet, { start, end, size, prefix: undefined });
      return;
    }
    const prefix = (await lease?.prefix()) ?? { length: 0, verification: verifier.start(digest) };
    try {
      await relay.copy(outlet, { start, end, size, prefix });
    } finally {
      await prefix.verification.end();
    }
  }
}
