const poolBytes = 64 * 1024 * 1024;
const smallest = 64 * 1024;
const largest = 1024 * 1024;

/**
 * The buffers that readers copy through. However many there are, their pairs fit into one pool: the more readers, the
 * smaller the buffers.
 */
export class Buffers {
  readonly #free = new Map<number, Buffer[]>();
  #freeBytes = 0;
  #readers = 0;

  enter(): void {
    this.#readers += 1;
  }

  leave(): void {
    this.#readers -= 1;
  }

  /** A buffer for at most `wanted` bytes at a time; it may be smaller or larger than that. */
  take(wanted: number): Buffer {
    const share = poolBytes / (2 * Math.max(1, this.#readers));
    let size = smallest;
    while (size < largest && size < wanted && size * 2 <= share) size *= 2;
    const kept = this.#free.get(size)?.pop();
    if (!kept) return Buffer.allocUnsafeSlow(size);
    this.#freeBytes -= size;
    return kept;
  }

  /** Only for a buffer that nothing reads from any more. */
  give(buffer: Buffer): void {
    if (this.#freeBytes + buffer.length > poolBytes / 2) return;
    this.#freeBytes += buffer.length;
    const kept = this.#free.get(buffer.length);
    if (kept) kept.push(buffer);
    else this.#free.set(buffer.length, [buffer]);
  }
}
