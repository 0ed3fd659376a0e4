import type { Content } from '../../oci/content.ts';
import { isWholeWant, type Want } from '../../oci/range.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import type { MirrorError } from '../../util/errors.ts';

/** Which parts of a blob are wanted. */
export interface Demand {
  /** A client waits for bytes. */
  readonly hasReaders: boolean;
  /** Fetch the whole blob, not only what readers wait for. */
  readonly isWholeWanted: boolean;
  /** Reserve space for the whole blob at once. */
  readonly reservesWhole: boolean;
}

interface Waiter {
  readonly want: Want;
  readonly resolve: (content: Content) => void;
  readonly reject: (error: MirrorError) => void;
}

/** Ranges up to this size are probes: they do not cause the rest of the blob to be fetched. */
export const probeBytes = 4096;

/** The demand for one fill's blob, from clients that wait for the first response and from readers. */
export class FillDemand implements Demand {
  readonly #ingest: Pick<Ingest, 'readers'>;
  readonly #completeRanges: boolean;
  readonly #waiting: Waiter[] = [];
  #isWholeWanted = false;
  #reservesWhole = false;
  /** Total bytes of the ranges requested. */
  #rangeBytes = 0;

  /** `completeRanges`: fetch the rest of a blob after a range. */
  constructor(ingest: Pick<Ingest, 'readers'>, completeRanges: boolean) {
    this.#ingest = ingest;
    this.#completeRanges = completeRanges;
  }

  get hasReaders(): boolean {
    return this.#waiting.length > 0 || this.#ingest.readers.size > 0;
  }

  get isWholeWanted(): boolean {
    return this.#isWholeWanted;
  }

  get reservesWhole(): boolean {
    return this.#reservesWhole;
  }

  /** A client waits for the first response. */
  get hasWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  /** The wants of clients that wait for the first response, oldest first. */
  get waiting(): readonly Want[] {
    return this.#waiting.map(({ want }) => want);
  }

  /** Fetch the whole blob, with or without readers. */
  wantWhole(): void {
    this.#reservesWhole = true;
    this.#isWholeWanted = true;
  }

  /** Notes a client's want, before the client waits or reads. */
  noteWant(want: Want): void {
    if (isWholeWant(want)) this.wantWhole();
  }

  /** Counts the bytes of a range that a client reads. */
  addRangeBytes(bytes: number): void {
    this.#rangeBytes += bytes;
    if (this.#completeRanges && this.#rangeBytes > probeBytes) this.#isWholeWanted = true;
  }

  /** Resolved by `answer`, rejected by `fail`. */
  wait(want: Want): Promise<Content> {
    return new Promise((resolve, reject) => this.#waiting.push({ want, resolve, reject }));
  }

  /** Resolves all waiting clients, synchronously. */
  answer(lease: (want: Want) => Content): void {
    for (const { want, resolve } of this.#waiting.splice(0)) resolve(lease(want));
  }

  fail(error: MirrorError): void {
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}
