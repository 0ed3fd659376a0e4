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

/** Who runs the ingests of a store. */
export interface IngestOwner {
  readonly verifier: Verifier;
  readonly buffers: Buffers;
  /** All leases are back and the file is closed. */
  closed(ingest: Ingest): void;
}

/** Where a reader stands, and where it wants to stop; undefined while the size is not known. */
export interface Reader {
  readonly offset: number;
  readonly end: number | undefined;
}

/** A lease on an ingest. */
export interface IngestLease {
  /**
   * Writes what is wanted at the outlet's pace. Resolves to where it stopped: before the end only if the file can take
   * no more. Rejects with the fill's fault.
   */
  copy(outlet: Outlet, range: ByteRange | undefined): Promise<number>;
  /** The hash of the unbroken prefix, once it is computed, to be gone on with, and how long that prefix is. */
  prefix(): Promise<{ length: number; verification: Verification }>;
  /** Gives the lease back. Twice is fine. */
  release(): void;
}

/** What is less is not worth a file that waits for the next fill. */
const worthKeeping = 64 * 1024;

/**
 * The growing file of a fill: sparse, with the set of intervals that are in it. Its readers follow it at their own pace;
 * whoever reads the whole does not get the last byte before the digest is verified. Nobody else can see it before it is
 * committed. A fill that fails leaves it to the next one, with what is there.
 */
export class Ingest {
  /** To be called when a reader has come or gone. */
  readonly #onReadersChanged: () => void;
  readonly #file: GrowingFile;
  readonly #owner: IngestOwner;
  readonly #readers = new Set<Reader>();
  readonly #waiting = new Set<() => void>();
  #verification: Verification | undefined;
  #verified = false;
  #end: 'committed' | 'kept' | 'discarded' | undefined;
  #full = false;
  #fault: MirrorError | undefined;
  /** The leases, and one for the fill until it commits or fails. */
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

  /** All bytes are there. */
  get isComplete(): boolean {
    return this.present.total === this.size;
  }

  /** What an earlier process has left: nobody is shown it before the digest is proven. */
  get unproven(): Intervals {
    return this.#file.unproven;
  }

  /** What was left by an earlier process may be damaged: a digest that does not match may be its fault. */
  get isUnproven(): boolean {
    return !this.#verified && this.unproven.total > 0;
  }

  /** Bytes on disk that are not in the store yet. */
  get pendingBytes(): number {
    return this.#end === undefined ? this.present.total : 0;
  }

  get isVerified(): boolean {
    return this.#verified;
  }

  /** Opens the file that an earlier fill has left, if there is one and it holds what it is said to. */
  reopen(): Promise<void> {
    return this.#file.reopen();
  }

  /**
   * Sets aside room for `room` bytes in all and opens the file. What an earlier fill has left of another size is dropped.
   * Throws `store-full`, also when there is no room before the signal aborts.
   */
  begin(size: number | undefined, room: number | undefined, signal?: AbortSignal): Promise<void> {
    return this.#file.begin(size, room, signal);
  }

  /** Sets aside room for `bytes` in all. Throws `store-full`, also when there is none before the signal aborts. */
  reserve(bytes: number, signal?: AbortSignal): Promise<void> {
    return this.#file.reserve(bytes, signal);
  }

  /**
   * Puts bytes at their place; what is there already is passed over. Returns how many were new. Throws `store-full`, or
   * `upstream-invalid` for more bytes than the size allows.
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
   * The upstream has told the size late, or its answer has ended. Throws `upstream-invalid` when there are more bytes
   * already, and `digest-mismatch` for an end before the first byte: of nothing no last byte can be held back.
   */
  setSize(size: number): void {
    if (size === 0 && !hashesTo(nothing, this.digest))
      throw new MirrorError('digest-mismatch', `blob ${this.digest}: the upstream sent no bytes`);
    this.#file.setSize(size);
    this.#wake();
  }

  /** From now on the digest is computed, as far as the file is whole from its start. */
  startVerifying(): void {
    if (this.#verification) return;
    this.#verification = this.#owner.verifier.start(this.digest, this.#file.fd);
    this.#verification.advance(this.present.endOfRun(0));
  }

  /** Everything is there: resolves when the digest is proven. Throws `digest-mismatch`. */
  async verify(): Promise<void> {
    this.startVerifying();
    if (!(await this.#verification?.matches())) {
      throw new MirrorError(
        'digest-mismatch',
        `blob ${this.digest}: ${this.present.total} bytes that do not hash to it`,
      );
    }
    this.#verified = true;
    this.#wake();
  }

  /** What is there does not hash to the digest, and may have been damaged before: all of it is to come again. */
  async startOver(): Promise<void> {
    const verification = this.#verification;
    this.#verification = undefined;
    await verification?.end().catch(() => undefined);
    await this.#file.startOver();
  }

  /** Taken in this tick. */
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
        // It may stand elsewhere now.
        this.#onReadersChanged();
        await copyFile(source, outlet, this.#owner.buffers);
        return source.offset;
      },
      prefix: async () => {
        // The reader has been shown nothing of it, so it goes on from nothing.
        if (this.isUnproven && reader.offset === 0)
          return { length: 0, verification: this.#owner.verifier.start(this.digest) };
        this.startVerifying();
        const length = this.present.endOfRun(0);
        const verification = this.#verification?.fork();
        if (!verification) throw new Error(`ingest of ${this.digest} was not begun`);
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

  /** The fill has committed: the file now belongs to the store. */
  committed(): void {
    this.#over('committed');
    this.#leave();
  }

  /** The file can take no more: the readers get what is there, and nothing is kept. */
  async overflow(): Promise<void> {
    this.#full = true;
    await this.#finish('discarded');
  }

  /**
   * Ends all readers with the same fault. What is there stays for the next fill, unless it cannot be trusted. Those that
   * read what is verified already are not disturbed: only the store has lost it.
   */
  async fail(error: MirrorError): Promise<void> {
    if (!this.#verified) this.#fault = error;
    const isSound = error.fault !== 'digest-mismatch' && !this.#verified;
    await this.#finish(isSound && this.#isWorthKeeping ? 'kept' : 'discarded');
  }

  /** Nobody wants more of it now. */
  async suspend(): Promise<void> {
    await this.#finish(this.#isWorthKeeping ? 'kept' : 'discarded');
  }

  /** Of an unknown size nobody could tell later whether what is there is too much. */
  get #isWorthKeeping(): boolean {
    return this.size !== undefined && this.present.total >= worthKeeping;
  }

  #over(end: 'committed' | 'kept' | 'discarded'): void {
    this.#end = end;
    this.#file.end();
  }

  async #finish(end: 'kept' | 'discarded'): Promise<void> {
    if (this.#end) return;
    this.#over(end);
    this.#wake();
    if (end === 'kept') this.#file.keep();
    else if (this.#file.isThere) await this.#file.discard();
    this.#leave();
  }

  #source(range: ByteRange | undefined): Source {
    const whole = range === undefined || (range.start === 0 && range.end === this.size);
    // The getters are the source's; `this` in them is not the ingest.
    const size = (): number | undefined => this.size;
    const fault = (): MirrorError | undefined => this.#fault;
    // A part is not waited for until all of it is proven: it comes past the file.
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
        // What is kept goes on counting.
        if (this.#end !== 'kept') this.reservation.release();
        this.#owner.closed(this);
      });
  }
}
