const poolBytes = 32 * 1024 * 1024;
const smallest = 32 * 1024;
const largest = 1024 * 1024;

/**
 * Read buffers for all readers, two each, within one pool: the more readers, the smaller the buffers. Free buffers are
 * reusable for reuse within the same bound.
 */
export class Buffers {
  readonly #free = new Map<number, Buffer[]>();
  #freeBytes = 0;
  #usedBytes = 0;
  #readers = 0;

  enter(): void {
    this.#readers += 1;
  }

  leave(): void {
    this.#readers -= 1;
  }

  /** A buffer for reads of up to `wanted` bytes; its size may differ. */
  take(wanted: number): Buffer {
    const share = poolBytes / (2 * Math.max(1, this.#readers));
    let size = smallest;
    while (size < largest && size < wanted && size * 2 <= share) size *= 2;
    this.#usedBytes += size;
    const reusable = this.#free.get(size)?.pop();
    if (reusable) {
      this.#freeBytes -= size;
      return reusable;
    }
    // The free buffers have other sizes.
    if (this.#usedBytes + this.#freeBytes > poolBytes) this.#forget();
    return Buffer.allocUnsafeSlow(size);
  }

  /** For reuse: only if nothing reads from the buffer any more. */
  give(buffer: Buffer): void {
    this.drop(buffer);
    if (this.#usedBytes + this.#freeBytes + buffer.length > poolBytes) return;
    this.#freeBytes += buffer.length;
    const reusable = this.#free.get(buffer.length);
    if (reusable) reusable.push(buffer);
    else this.#free.set(buffer.length, [buffer]);
  }

  /** For a buffer that may still be read from: it is not reused. */
  drop({ length }: Buffer): void {
    this.#usedBytes -= length;
  }

  #forget(): void {
    this.#free.clear();
    this.#freeBytes = 0;
  }
}
