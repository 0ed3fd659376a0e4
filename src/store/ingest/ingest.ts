import { open, unlink, type FileHandle } from 'node:fs/promises';
import type { Digest } from '../../oci/digest.ts';
import type { ByteRange } from '../../oci/range.ts';
import { MirrorError } from '../../util/errors.ts';
import type { Outlet } from '../../util/outlet.ts';
import type { Slots } from '../../util/slots.ts';
import type { Buffers } from '../reading/buffers.ts';
import { copyFile, type Source } from '../reading/copy.ts';
import { Reads } from '../reading/reads.ts';
import type { Reservation } from '../room/evictor.ts';
import { Intervals } from './intervals.ts';
import { withoutHoles, type Journalled } from './journal.ts';
import type { Verification, Verifier } from './verifier.ts';

/** What an ingest needs of its store. */
export interface IngestContext {
  readonly verifier: Verifier;
  readonly buffers: Buffers;
  /** Writes are few at a time, since those that the kernel throttles would block every read too. */
  readonly writes: Slots;
  readonly reservation: Reservation;
  /** Milliseconds by the monotonic clock. */
  readonly now: () => number;
  /** Writes down what is there; never throws. */
  readonly journal: () => void;
  /** Resolves when what has been written to the file is on the disk for good. */
  readonly sync: (fd: number) => Promise<void>;
  /** The same for what has been written down. */
  readonly syncJournal: () => Promise<void>;
  /** What is there stays for the next fill: the file and its reservation are the store's from now on. */
  readonly keep: () => void;
  /** The disk does not take what is written. */
  readonly onTrouble: (error: unknown) => void;
  /** Nothing stays. */
  readonly discard: () => Promise<void>;
  /** A reader stands elsewhere, or has gone. */
  readonly onReadersChanged: () => void;
  /** All leases are back and the file is closed. */
  readonly onClosed: () => void;
}

/** What an earlier fill has left. */
export interface Kept extends Journalled {
  /** It is this process's: the file holds what it is said to. */
  readonly isOurs: boolean;
  /** Of what this process has kept: what an earlier one had left. */
  readonly unproven: Intervals;
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

/** Room to set aside for `bytes` and what follows, where the size is not known or not believed: as much again, up to 16 MiB. */
export function withMargin(bytes: number): number {
  return bytes + Math.min(Math.max(bytes, leastMargin), mostMargin);
}

const leastMargin = 1024 * 1024;
const mostMargin = 16 * 1024 * 1024;
/** As much may be lost to a kill -9. */
const journalEveryBytes = 8 * 1024 * 1024;
/** As much time's worth may be lost to a power cut. */
const syncEveryMs = 1000;
/** What is less is not worth a file that waits for the next fill. */
const worthKeeping = 64 * 1024;

/**
 * The growing file of a fill: sparse, with the set of intervals that are in it. Its readers follow it at their own pace;
 * whoever reads the whole does not get the last byte before the digest is verified. Nobody else can see it before it is
 * committed. A fill that fails leaves it to the next one, with what is there.
 */
export class Ingest implements Journalled {
  readonly registry: string;
  readonly digest: Digest;
  readonly path: string;
  readonly reservation: Reservation;
  readonly #context: IngestContext;
  readonly #kept: Kept | undefined;
  readonly #readers = new Set<Reader>();
  readonly #waiting = new Set<() => void>();
  #present = new Intervals();
  /** What an earlier process has left, and no digest has proven: until then nobody is shown it. */
  #unproven = new Intervals();
  #synced = new Intervals();
  /** What is there or being written; a write that fails ends it all. */
  #claimed = new Intervals();
  #handle: FileHandle | undefined;
  #sharedReads: Reads | undefined;
  #verification: Verification | undefined;
  #size: number | undefined;
  #journalledBytes = 0;
  #syncedAt = 0;
  #syncing: Promise<void> | undefined;
  #verified = false;
  #end: 'committed' | 'kept' | 'discarded' | undefined;
  #full = false;
  #fault: MirrorError | undefined;
  /** The leases, and one for the fill until it commits or fails. */
  #holders = 1;

  constructor(
    { registry, digest, path }: Pick<Journalled, 'registry' | 'digest' | 'path'>,
    context: IngestContext,
    kept?: Kept,
  ) {
    this.registry = registry;
    this.digest = digest;
    this.path = path;
    this.reservation = context.reservation;
    this.#context = context;
    this.#kept = kept;
  }

  get size(): number | undefined {
    return this.#size;
  }

  get present(): Intervals {
    return this.#present;
  }

  /** What is on the disk for good. */
  get synced(): Intervals {
    return this.#synced;
  }

  get readers(): ReadonlySet<Reader> {
    return this.#readers;
  }

  /** All bytes are there. */
  get isComplete(): boolean {
    return this.#present.total === this.#size;
  }

  get unproven(): Intervals {
    return this.#unproven;
  }

  /** What was left by an earlier process may be damaged: a digest that does not match may be its fault. */
  get isUnproven(): boolean {
    return !this.#verified && this.#unproven.total > 0;
  }

  /** Bytes on disk that are not in the store yet. */
  get pendingBytes(): number {
    return this.#end === undefined ? this.#present.total : 0;
  }

  get isVerified(): boolean {
    return this.#verified;
  }

  /** Opens the file that an earlier fill has left, if there is one and it holds what it is said to. */
  async reopen(): Promise<void> {
    const kept = this.#kept;
    if (!kept || this.#handle) return;
    try {
      const handle = await open(this.path, 'r+');
      this.#handle = handle;
      this.#present = kept.isOurs
        ? new Intervals(kept.present.ranges)
        : await withoutHoles(handle, kept.present, kept.synced);
      this.#claimed = new Intervals(this.#present.ranges);
      this.#unproven = new Intervals((kept.isOurs ? kept.unproven : this.#present).ranges);
    } catch {
      // Then it is as if there had been none.
      await this.#handle?.close();
      this.#handle = undefined;
      await unlink(this.path).catch(() => undefined);
      this.reservation.shrinkTo(0);
      return;
    }
    this.#synced = kept.synced;
    this.#journalledBytes = this.#present.total;
    this.#size = kept.size;
    this.#syncedAt = this.#context.now();
  }

  /**
   * Sets aside room for `room` bytes in all and opens the file. What an earlier fill has left of another size is dropped.
   * Throws `store-full`, also when there is no room before the signal aborts.
   */
  async begin(size: number | undefined, room: number | undefined, signal?: AbortSignal): Promise<void> {
    if (this.#size !== undefined && size !== undefined && size !== this.#size) {
      await this.#empty();
      this.#size = size;
      this.#journal();
    }
    this.#size ??= size;
    await this.reserve(room ?? withMargin(0), signal);
    try {
      this.#handle ??= await open(this.path, 'wx+');
    } catch (error) {
      throw this.#writeFault(error);
    }
    this.#syncedAt ||= this.#context.now();
  }

  /** Sets aside room for `bytes` in all. Throws `store-full`, also when there is none before the signal aborts. */
  async reserve(bytes: number, signal?: AbortSignal): Promise<void> {
    try {
      await this.reservation.growTo(bytes, signal);
    } catch (error) {
      throw this.#writeFault(error);
    }
  }

  /**
   * Puts bytes at their place; what is there already is passed over. Returns how many were new. Throws `store-full`, or
   * `upstream-invalid` for more bytes than the size allows.
   */
  async write(offset: number, chunks: readonly Uint8Array[]): Promise<number> {
    const end = chunks.reduce((sum, chunk) => sum + chunk.byteLength, offset);
    if (this.#size !== undefined && end > this.#size) {
      throw new MirrorError(
        'upstream-invalid',
        `blob ${this.digest}: more bytes than its size of ${this.#size}`,
      );
    }
    const parts = this.#claim(offset, end);
    const added = parts.reduce((sum, part) => sum + part.end - part.start, 0);
    if (added === 0) return 0;
    const isAll = added === end - offset && parts.length === 1;
    try {
      const needed = this.#claimed.total;
      if (needed > this.reservation.bytes)
        await this.reservation.growTo(Math.min(withMargin(needed), this.#size ?? Infinity));
      const done = await this.#context.writes.take();
      try {
        if (isAll) await this.#writeAll(offset, chunks, added);
        else {
          const bytes = Buffer.concat(chunks);
          for (const { start, end: stop } of parts) {
            await this.#writeAll(start, [bytes.subarray(start - offset, stop - offset)], stop - start);
          }
        }
      } finally {
        done();
      }
    } catch (error) {
      throw this.#writeFault(error);
    }
    for (const { start, end: stop } of parts) this.#present.add(start, stop);
    this.reservation.wrote(added);
    this.#verification?.advance(this.#present.endOfRun(0));
    if (isAll && this.#waiting.size > 0) this.#reads.seed(offset, chunks, added);
    this.#wake();
    if (this.#present.total - this.#journalledBytes >= journalEveryBytes) this.#journal();
    return added;
  }

  /**
   * The upstream has told the size late, or its answer has ended. Throws `upstream-invalid` when there are more bytes
   * already.
   */
  setSize(size: number): void {
    const end = this.#present.ranges.at(-1)?.end ?? 0;
    if (end > (this.#size ?? size)) {
      throw new MirrorError(
        'upstream-invalid',
        `blob ${this.digest}: ${size} bytes, though ${end} have come`,
      );
    }
    this.#size ??= size;
    this.#wake();
  }

  /** From now on the digest is computed, as far as the file is whole from its start. */
  startVerifying(): void {
    if (this.#verification) return;
    this.#verification = this.#context.verifier.start(this.digest, this.#open.fd);
    this.#verification.advance(this.#present.endOfRun(0));
  }

  /** Everything is there: resolves when the digest is proven. Throws `digest-mismatch`. */
  async verify(): Promise<void> {
    this.startVerifying();
    if (!(await this.#verification?.matches())) {
      throw new MirrorError(
        'digest-mismatch',
        `blob ${this.digest}: ${this.#present.total} bytes that do not hash to it`,
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
    await this.#empty();
    this.reservation.shrinkTo(0);
    this.#journal();
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
        this.#context.onReadersChanged();
        await copyFile(source, outlet, this.#context.buffers);
        return source.offset;
      },
      prefix: async () => {
        // The reader has been shown nothing of it, so it goes on from nothing.
        if (this.isUnproven && reader.offset === 0)
          return { length: 0, verification: this.#context.verifier.start(this.digest) };
        this.startVerifying();
        const length = this.#present.endOfRun(0);
        const verification = this.#verification?.fork();
        if (!verification) throw new Error(`ingest of ${this.digest} was not begun`);
        return { length, verification: await verification };
      },
      release: () => {
        if (released) return;
        released = true;
        this.#readers.delete(reader);
        this.#leave();
        this.#context.onReadersChanged();
      },
    };
  }

  /** The fill has committed: the file now belongs to the store. */
  committed(): void {
    this.#end = 'committed';
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
    return this.#size !== undefined && this.#present.total >= worthKeeping;
  }

  get #reads(): Reads {
    this.#sharedReads ??= new Reads(`blob ${this.digest}`, this.#open, this.#context.buffers);
    return this.#sharedReads;
  }

  get #open(): FileHandle {
    if (!this.#handle) throw new Error(`ingest of ${this.digest} was not begun`);
    return this.#handle;
  }

  async #finish(end: 'kept' | 'discarded'): Promise<void> {
    if (this.#end) return;
    this.#end = end;
    this.#wake();
    if (end === 'kept') this.#context.keep();
    // Small blobs come and go without a file.
    else if (this.#handle || this.#kept) await this.#context.discard();
    this.#leave();
  }

  #source(range: ByteRange | undefined): Source {
    const whole = range === undefined || (range.start === 0 && range.end === this.#size);
    // The getters are the source's; `this` in them is not the ingest.
    const size = (): number | undefined => this.#size;
    const fault = (): MirrorError | undefined => this.#fault;
    // A part is not waited for until all of it is proven: it comes past the file.
    const isFull = (offset: number): boolean =>
      this.#full || (!whole && this.isUnproven && this.#unproven.endOfRun(offset) > offset);
    return {
      reads: this.#reads,
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
        const present = this.#present.endOfRun(offset);
        const end = this.isUnproven
          ? Math.min(present, Math.max(offset, this.#unproven.next(offset)))
          : present;
        return this.#verified || !whole ? end : Math.min(end, (this.#size ?? end) - 1);
      },
      onChange: (wake) => {
        this.#waiting.add(wake);
        return () => this.#waiting.delete(wake);
      },
    };
  }

  /** What of a range nobody has written or is writing: each byte of the file is written once. */
  #claim(start: number, end: number): ByteRange[] {
    const parts: ByteRange[] = [];
    for (let at = this.#claimed.endOfRun(start); at < end; at = this.#claimed.endOfRun(at)) {
      const stop = Math.min(end, this.#claimed.next(at));
      parts.push({ start: at, end: stop });
      this.#claimed.add(at, stop);
    }
    return parts;
  }

  async #writeAll(offset: number, chunks: readonly Uint8Array[], length: number): Promise<void> {
    let { bytesWritten } = await this.#open.writev(chunks, offset);
    if (bytesWritten === length) return;
    const rest = Buffer.concat(chunks);
    while (bytesWritten < length) {
      const more = await this.#open.write(rest, bytesWritten, length - bytesWritten, offset + bytesWritten);
      bytesWritten += more.bytesWritten;
    }
  }

  #journal(): void {
    this.#journalledBytes = this.#present.total;
    if (this.#size === undefined) return;
    this.#context.journal();
    if (!this.#syncing && this.#context.now() - this.#syncedAt >= syncEveryMs) {
      this.#syncing = this.#sync().finally(() => (this.#syncing = undefined));
    }
  }

  async #sync(): Promise<void> {
    const present = new Intervals(this.#present.ranges);
    try {
      await this.#context.sync(this.#open.fd);
      this.#synced = present;
      if (this.#end !== undefined) return;
      this.#context.journal();
      await this.#context.syncJournal();
    } catch {
      // Then less is sure to outlive a power cut.
    }
    this.#syncedAt = this.#context.now();
  }

  async #empty(): Promise<void> {
    await this.#open.truncate(0);
    this.#present = new Intervals();
    this.#unproven = new Intervals();
    this.#synced = new Intervals();
    this.#claimed = new Intervals();
    this.#journalledBytes = 0;
  }

  #wake(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }

  /** Whatever keeps bytes from being written, the store can hold no more of this. */
  #writeFault(error: unknown): MirrorError {
    if (error instanceof MirrorError) return error;
    this.#context.onTrouble(error);
    const what = `blob ${this.digest}: cannot write it to the store`;
    return new MirrorError('store-full', what, { cause: error });
  }

  #leave(): void {
    this.#holders -= 1;
    if (this.#holders > 0) return;
    void (async () => {
      await this.#syncing;
      await this.#verification?.end().catch(() => undefined);
      await this.#handle?.close();
    })()
      .catch(() => undefined)
      .finally(() => {
        // What is kept goes on counting.
        if (this.#end !== 'kept') this.reservation.release();
        this.#context.onClosed();
      });
  }
}
