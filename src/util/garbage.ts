import { performance, type EventLoopUtilization } from 'node:perf_hooks';
import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Bytes of buffers outside the heap after which a young-generation collection pays off. */
const everyBytes = 16 * 1024 * 1024;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as (options: {
  type: 'minor' | 'major';
  execution?: 'async';
  /** Compacts, and returns pages to the system. */
  flavor?: 'last-resort';
}) => unknown;
let received = 0;

/**
 * Counts bytes received in short-lived buffers outside the heap. V8 sees them as external memory only and runs a full
 * collection per 64 MB: a third of the time for a 1 GB blob. A young-generation collection frees them in 1 to 2 ms.
 */
export function noteGarbage(bytes: number): void {
  received += bytes;
  if (received < everyBytes) return;
  received = 0;
  collect({ type: 'minor' });
}

const idleShare = 0.02;
const worthBytes = 32 * 1024 * 1024;

/**
 * Shrinks the heap after load: V8 keeps a grown heap while nothing is allocated. Call `check` every few seconds. It
 * collects the whole heap (a pause of about 120 ms for 50 MB of live data) if the event loop was idle since the last call
 * and the heap has grown by 32 MiB since the last such collection.
 */
export class IdleCollection {
  #since: EventLoopUtilization = performance.eventLoopUtilization();
  #heapBytes = getHeapStatistics().total_heap_size;

  check(): void {
    const before = this.#since;
    this.#since = performance.eventLoopUtilization();
    if (performance.eventLoopUtilization(this.#since, before).utilization > idleShare) return;
    const { total_heap_size: heapBytes } = getHeapStatistics();
    this.#heapBytes = Math.min(this.#heapBytes, heapBytes);
    if (heapBytes - this.#heapBytes < worthBytes) return;
    collect({ type: 'major', execution: 'async', flavor: 'last-resort' });
    this.#heapBytes = heapBytes;
  }
}
