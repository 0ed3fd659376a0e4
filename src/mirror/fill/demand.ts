import type { Content } from '../../oci/content.ts';
import { isWholeWant, type Want } from '../../oci/range.ts';
import type { Ingest } from '../../store/ingest/ingest.ts';
import type { MirrorError } from '../../util/errors.ts';

/** What is wanted of a blob, for those that fetch it. */
export interface Demand {
  /** A client waits for its bytes. */
  readonly hasReaders: boolean;
  /** The whole is to be fetched, not only what readers wait for. */
  readonly isWholeWanted: boolean;
  /** Room for the whole is set aside at once. */
  readonly reservesWhole: boolean;
}

interface Waiter {
  readonly want: Want;
  readonly resolve: (content: Content) => void;
  readonly reject: (error: MirrorError) => void;
}

/** A client that asks for no more bytes than this only wants to know what is there. */
export const probeBytes = 4096;

/** The demand for the blob of one fill: of clients that wait for the first answer, of readers, and what follows from both. */
export class FillDemand implements Demand {
  readonly #ingest: Pick<Ingest, 'readers'>;
  readonly #completeRanges: boolean;
  readonly #waiting: Waiter[] = [];
  #isWholeWanted = false;
  #reservesWhole = false;
  /** Bytes that ranges have asked for. */
  #rangeBytes = 0;

  /** `completeRanges`: after ranges of a blob its rest follows. */
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

  /** A client waits for the first answer. */
  get isAwaited(): boolean {
    return this.#waiting.length > 0;
  }

  /** What those want that wait for the first answer, in the order in which they came. */
  get waiting(): readonly Want[] {
    return this.#waiting.map(({ want }) => want);
  }

  /** The whole is wanted, whoever waits for it. */
  askWhole(): void {
    this.#reservesWhole = true;
    this.#isWholeWanted = true;
  }

  /** What a client asks for, before it waits or reads. */
  ask(want: Want): void {
    if (isWholeWant(want)) this.askWhole();
  }

  /** Somebody reads so many bytes. */
  askBytes(bytes: number): void {
    this.#rangeBytes += bytes;
    if (this.#completeRanges && this.#rangeBytes > probeBytes) this.#isWholeWanted = true;
  }

  /** Resolves by `answer`, rejects by `fail`. */
  wait(want: Want): Promise<Content> {
    return new Promise((resolve, reject) => this.#waiting.push({ want, resolve, reject }));
  }

  /** Gives all that wait their content, in this tick. */
  answer(lease: (want: Want) => Content): void {
    for (const { want, resolve } of this.#waiting.splice(0)) resolve(lease(want));
  }

  fail(error: MirrorError): void {
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}
