import { hashesTo, type Digest } from '../../oci/digest.ts';
import type { ByteRange } from '../../oci/range.ts';
import { MirrorError } from '../../util/errors.ts';
import type { Outlet } from '../../util/outlet.ts';
import type { Buffers } from '../reading/buffers.ts';
import { copyFile, type Source } from '../reading/copy.ts';
import type { Reservation } from '../room/reservation.ts';
import type { GrowingFile } from './growing-file.ts';
import type { Intervals } from './intervals.ts';
import type { Verification, Verifier } from './verifier.ts';

const nothing = Buffer.alloc(0);

/** Creates the ingests of a store. */
export interface IngestOwner {
  readonly verifier: Verifier;
  readonly buffers: Buffers;
  /** All leases are released and the file is closed. */
  closed(ingest: Ingest): void;
}

/** Position of a reader, and where it stops; undefined while the size is unknown. */
export interface Reader {
  readonly offset: number;
  readonly end: number | undefined;
}

/** A lease on an ingest. */
export interface IngestLease {
  /**
   * Copies the range at the outlet's pace. Resolves to where it stopped: before the end only if the file is full.
   * Rejects with the ingest's fault.
   */
  copy(outlet: Outlet, range: ByteRange | undefined): Promise<number>;
  /** A copy of the hash of the contiguous prefix, to continue from, and the length of that prefix. */
  prefix(): Promise<{ length: number; verification: Verification }>;
  /** Idempotent. */
  release(): void;
}

/** Fewer bytes are not left for the next ingest. */
const minReusableBytes = 64 * 1024;

/**
 * The growing file of a fill. Readers follow it at their own pace; a reader of the whole blob gets the last byte only
 * once the digest is verified. A failed ingest leaves its bytes to the next one.
 */
export class Ingest {
  /** Called when a reader comes, moves or leaves. */
  readonly #onReadersChanged: () => void;
  readonly #file: GrowingFile;
  readonly #owner: IngestOwner;
  readonly #readers = new Set<Reader>();
  readonly #waiting = new Set<() => void>();
  #verification: Verification | undefined;
  #verified = false;
  #end: 'committed' | 'suspended' | 'discarded' | undefined;
  #full = false;
  #fault: MirrorError | undefined;
  /** Leases, plus one for the fill until it commits or fails. */
  #holders = 1;

  constructor(file: GrowingFile, owner: IngestOwner, onReadersChanged: () => void) {
    this.#file = file;
    this.#owner = owner;
    this.#onReadersChanged = onReadersChanged;
  }

  get registry(): string {
    return this.#file.registry;
  }

  get digest(): Digest {
    return this.#file.digest;
  }

  get path(): string {
    return this.#file.path;
  }

  get reservation(): Reservation {
    return this.#file.reservation;
  }

  get size(): number | undefined {
    return this.#file.size;
  }

  get present(): Intervals {
    return this.#file.present;
  }

  get readers(): ReadonlySet<Reader> {
    return this.#readers;
  }

  /** All bytes are present. */
  get isComplete(): boolean {
    return this.present.total === this.size;
  }

  /** Bytes from an earlier process: not served until the digest is verified. */
  get unproven(): Intervals {
    return this.#file.unproven;
  }

  /** Contains bytes from an earlier process, which may be the cause of a digest mismatch. */
  get isUnproven(): boolean {
    return !this.#verified && this.unproven.total > 0;
  }

  /** Bytes on disk, not yet in the store. */
  get pendingBytes(): number {
    return this.#end === undefined ? this.present.total : 0;
  }

  get isVerified(): boolean {
    return this.#verified;
  }

  /** Opens the file left by an earlier ingest, if there is one, and checks its intervals. */
  reopen(): Promise<void> {
    return this.#file.reopen();
  }

  /**
   * Reserves `room` bytes in all and opens the file. Bytes for another size are dropped. Throws `store-full`, also if
   * the signal aborts first.
   */
  begin(size: number | undefined, room: number | undefined, signal?: AbortSignal): Promise<void> {
    return this.#file.begin(size, room, signal);
  }

  /** Reserves `bytes` in all. Throws `store-full`, also if the signal aborts first. */
  reserve(bytes: number, signal?: AbortSignal): Promise<void> {
    return this.#file.reserve(bytes, signal);
  }

  /**
   * Writes the bytes not yet present. Resolves to their number. Throws `store-full`, or `upstream-invalid` for bytes
   * beyond the size.
   */
  write(offset: number, chunks: readonly Uint8Array[]): Promise<number> {
    return this.#file.write(offset, chunks, (added) => {
      this.#verification?.advance(this.present.endOfRun(0));
      const isAll = added === chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
      if (isAll && this.#waiting.size > 0) this.#file.reads.seed(offset, chunks, added);
      this.#wake();
    });
  }

  /**
   * Sets the size, when learnt late. Throws `upstream-invalid` if more bytes are present, and `digest-mismatch` for an
   * empty body: without a last byte to hold back, an unverified blob would arrive complete.
   */
  setSize(size: number): void {
    if (size === 0 && !hashesTo(nothing, this.digest))
      throw new MirrorError('digest-mismatch', `blob ${this.digest}: the upstream sent no bytes`);
    this.#file.setSize(size);
    this.#wake();
  }

  /** Starts hashing the contiguous prefix of the file. */
  startVerifying(): void {
    if (this.#verification) return;
    this.#verification = this.#owner.verifier.start(this.digest, this.#file.fd);
    this.#verification.advance(this.present.endOfRun(0));
  }

  /** Resolves when the digest of the complete file is verified. Throws `digest-mismatch`. */
  async verify(): Promise<void> {
    this.startVerifying();
    if (!(await this.#verification?.matches())) {
      throw new MirrorError(
        'digest-mismatch',
        `blob ${this.digest}: its ${this.present.total} bytes do not match the digest`,
      );
    }
    this.#verified = true;
    this.#wake();
  }

  /** Drops all bytes after a mismatch that bytes of an earlier process may have caused. */
  async startOver(): Promise<void> {
    const verification = this.#verification;
    this.#verification = undefined;
    await verification?.end().catch(() => undefined);
    await this.#file.startOver();
  }

  /** Takes effect in this tick. */
  lease(range: ByteRange | undefined): IngestLease {
    this.#holders += 1;
    let reader: Reader = { offset: range?.start ?? 0, end: range?.end };
    this.#readers.add(reader);
    let released = false;
    return {
      copy: async (outlet, wanted) => {
        const source = this.#source(wanted);
        this.#readers.delete(reader);
        reader = source;
        this.#readers.add(reader);
        // Its position may have changed.
        this.#onReadersChanged();
        await copyFile(source, outlet, this.#owner.buffers);
        return source.offset;
      },
      prefix: async () => {
        // The reader got none of the unverified bytes: hash from the start.
        if (this.isUnproven && reader.offset === 0)
          return { length: 0, verification: this.#owner.verifier.start(this.digest) };
        this.startVerifying();
        const length = this.present.endOfRun(0);
        const verification = this.#verification?.fork();
        if (!verification) throw new Error(`ingest of ${this.digest} was not started`);
        return { length, verification: await verification };
      },
      release: () => {
        if (released) return;
        released = true;
        this.#readers.delete(reader);
        this.#leave();
        this.#onReadersChanged();
      },
    };
  }

  /** The file now belongs to the store. */
  committed(): void {
    this.#ended('committed');
    this.#leave();
  }

  /** The store is full: readers get the bytes present, then the file is deleted. */
  async overflow(): Promise<void> {
    this.#full = true;
    await this.#finish('discarded');
  }

  /**
   * Ends all readers with the error, except readers of a verified blob. The bytes are left to the next ingest, unless
   * they may be wrong.
   */
  async fail(error: MirrorError): Promise<void> {
    if (!this.#verified) this.#fault = error;
    const isSound = error.fault !== 'digest-mismatch' && !this.#verified;
    await this.#finish(isSound && this.#isReusable ? 'suspended' : 'discarded');
  }

  /** No reader is left: the bytes are left to the next ingest. */
  async suspend(): Promise<void> {
    await this.#finish(this.#isReusable ? 'suspended' : 'discarded');
  }

  /** Without a known size, a later ingest could not detect excess bytes. */
  get #isReusable(): boolean {
    return this.size !== undefined && this.present.total >= minReusableBytes;
  }

  #ended(end: 'committed' | 'suspended' | 'discarded'): void {
    this.#end = end;
    this.#file.end();
  }

  async #finish(end: 'suspended' | 'discarded'): Promise<void> {
    if (this.#end) return;
    this.#ended(end);
    this.#wake();
    if (end === 'suspended') this.#file.leave();
    else if (this.#file.isThere) await this.#file.discard();
    this.#leave();
  }

  #source(range: ByteRange | undefined): Source {
    const whole = range === undefined || (range.start === 0 && range.end === this.size);
    // In the getters of the source, `this` is the source.
    const size = (): number | undefined => this.size;
    const fault = (): MirrorError | undefined => this.#fault;
    // A range is not delayed until the whole blob is verified: it is fetched past the file.
    const isFull = (offset: number): boolean =>
      this.#full || (!whole && this.isUnproven && this.unproven.endOfRun(offset) > offset);
    return {
      reads: this.#file.reads,
      offset: range?.start ?? 0,
      get end() {
        return range?.end ?? size();
      },
      get fault() {
        return fault();
      },
      get isFull() {
        return isFull(this.offset);
      },
      readableTo: (offset) => {
        const present = this.present.endOfRun(offset);
        const end = this.isUnproven
          ? Math.min(present, Math.max(offset, this.unproven.next(offset)))
          : present;
        return this.#verified || !whole ? end : Math.min(end, (this.size ?? end) - 1);
      },
      onChange: (wake) => {
        this.#waiting.add(wake);
        return () => this.#waiting.delete(wake);
      },
    };
  }

  #wake(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }

  #leave(): void {
    this.#holders -= 1;
    if (this.#holders > 0) return;
    void (async () => {
      await this.#verification?.end().catch(() => undefined);
      await this.#file.close();
    })()
      .catch(() => undefined)
      .finally(() => {
        // A partial still takes up space.
        if (this.#end !== 'suspended') this.reservation.release();
        this.#owner.closed(this);
      });
  }
}
