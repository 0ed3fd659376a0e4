import type { Writable } from 'node:stream';
import { blobMediaType, type Content } from '../../oci/content.ts';
import type { Digest } from '../../oci/digest.ts';
import type { ByteRange } from '../../oci/range.ts';
import type { IngestLease } from '../../store/ingest/ingest.ts';
import type { Verifier } from '../../store/ingest/verifier.ts';
import { writeTo, type Outlet } from '../../util/outlet.ts';
import { Relay, type OpenBlob, type RelayContext } from './relay.ts';

/** Shared by all content of one fill. */
export interface ArrivingContext {
  readonly digest: Digest;
  readonly verifier: Verifier;
  /** For bytes that bypass the store. */
  readonly relay: RelayContext;
}

export interface ArrivingParts {
  readonly size: () => number | undefined;
  /** Absent if the store cannot take the blob. */
  readonly lease: IngestLease | undefined;
  /** An upstream response that is open already. */
  readonly open?: OpenBlob | undefined;
}

/** Content still being fetched: read from the fill's file, and relayed past the store from where the store ran full. */
export class ArrivingContent implements Content {
  readonly digest: Digest;
  readonly mediaType = blobMediaType;
  readonly #verifier: Verifier;
  readonly #size: () => number | undefined;
  readonly #lease: IngestLease | undefined;
  readonly #relay: Relay;

  constructor({ digest, verifier, relay }: ArrivingContext, { size, lease, open }: ArrivingParts) {
    this.digest = digest;
    this.#verifier = verifier;
    this.#size = size;
    this.#lease = lease;
    this.#relay = new Relay(digest, relay, open);
  }

  get size(): number | undefined {
    return this.#size();
  }

  async prepare(): Promise<void> {
    if (!this.#lease) await this.#relay.prepare();
  }

  copyTo(sink: Writable, range?: ByteRange): Promise<void> {
    const lease = this.#lease;
    return writeTo(sink, async (outlet) => {
      const start = range?.start ?? 0;
      const at = lease ? await lease.copy(outlet, range) : start;
      if (at < (range?.end ?? this.size ?? Infinity)) await this.#copyPast(outlet, at, range);
    });
  }

  release(): void {
    this.#lease?.release();
    this.#relay.release();
  }

  async #copyPast(outlet: Outlet, start: number, range: ByteRange | undefined): Promise<void> {
    const relay = this.#relay;
    const { size } = this;
    const end = range?.end ?? size;
    const whole = range === undefined || (range.start === 0 && range.end === this.size);
    if (!whole) {
      await relay.copy(outlet, { start, end, size, prefix: undefined });
      return;
    }
    const prefix = (await this.#lease?.prefix()) ?? {
      length: 0,
      verification: this.#verifier.start(this.digest),
    };
    try {
      await relay.copy(outlet, { start, end, size, prefix });
    } finally {
      await prefix.verification.end();
    }
  }
}
