import { blockSize, largeBlob, type Blob } from '../support/images.ts';

/** Seeded random numbers (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** In [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number in [from, to). */
  between(from: number, to: number): number {
    return from + Math.floor(this.next() * (to - from));
  }

  of<T>(choices: readonly T[]): T {
    return choices[this.between(0, choices.length)] as T;
  }

  /** A choice by Zipf's law, exponent 1. */
  zipf<T>(choices: readonly T[]): T {
    const rank = Math.floor(Math.exp(this.next() * Math.log(choices.length + 1))) - 1;
    return choices[Math.min(rank, choices.length - 1)] as T;
  }

  shuffled<T>(choices: readonly T[]): T[] {
    return choices
      .map((choice) => ({ choice, order: this.next() }))
      .sort((a, b) => a.order - b.order)
      .map(({ choice }) => choice);
  }

  /** A blob whose blocks are unique within and across blobs. */
  blob(size: number): Blob {
    const block = Buffer.alloc(blockSize);
    for (let at = 0; at < block.length; at += 4) block.writeUInt32LE(this.between(0, 2 ** 32), at);
    return largeBlob(size, block);
  }
}
