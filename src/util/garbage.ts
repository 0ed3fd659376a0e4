import { performance, type EventLoopUtilization } from 'node:perf_hooks';
import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** Garbage outside the heap from which a collection of the young generation is worth its time. */
const everyBytes = 16 * 1024 * 1024;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as (options: {
  type: 'minor' | 'major';
  execution?: 'async';
  /** Compacts, and gives pages back to the system. */
  flavor?: 'last-resort';
}) => unknown;
let received = 0;

/**
 * Counts bytes that came in buffers outside the heap and will soon be garbage. V8 by itself notices them only as external
 * memory, and runs a full collection for every 64 MB of it: forty of them for a blob of 1 GB, a third of the time that it
 * takes. A collection of the young generation frees them in 1 to 2 ms.
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
 * Gives memory back after load: V8 keeps the heap that it grew to for as long as nothing is allocated. `look` is to be
 * called every few seconds. When the event loop was idle since the last call and the heap has grown by 32 MiB since the
 * last collection of this kind, the whole heap is collected: a pause of about 120 ms for 50 MB that stay.
 */
export class IdleCollection {
  #since: EventLoopUtilization = performance.eventLoopUtilization();
  #heapBytes = getHeapStatistics().total_heap_size;

  look(): void {
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
