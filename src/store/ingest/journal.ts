import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import type { Digest } from '../../oci/digest.ts';
import { Intervals } from './intervals.ts';

/** What is written down of an ingest, so that the next fill goes on from it. */
export interface Journalled {
  /** Where its bytes come from. */
  readonly registry: string;
  readonly digest: Digest;
  readonly path: string;
  readonly size: number | undefined;
  readonly present: Intervals;
  /** The part that outlives a power cut. */
  readonly synced: Intervals;
}

/** What an earlier fill has left. */
export interface Kept extends Journalled {
  /** It is this process's: the file holds what it is said to. */
  readonly isOurs: boolean;
  /** Of what this process has kept: what an earlier one had left. */
  readonly unproven: Intervals;
}

const sector = 512;
const stepBytes = 1024 * 1024;

/** Names this run of the kernel: what is in its page cache outlives a process, not the kernel. */
export function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    // Then no run is like another, and only what was synced counts.
    return randomUUID();
  }
}

/** `[start, end, start, end, …]` */
export function writeIntervals({ ranges }: Intervals): string {
  return JSON.stringify(ranges.flatMap(({ start, end }) => [start, end]));
}

export function readIntervals(text: string): Intervals {
  const numbers = JSON.parse(text) as number[];
  const intervals = new Intervals();
  for (let i = 0; i + 1 < numbers.length; i += 2) intervals.add(numbers[i] ?? 0, numbers[i + 1] ?? 0);
  return intervals;
}

/**
 * What of `present` is really in the file. What was not synced may have been lost with the file system's memory, also
 * within one run of the kernel: it reads as zeros or lies past the end. Each interval counts up to the first sector of
 * zeros in what was not synced; where the blob itself has one, that costs fetching the rest once more.
 */
export async function withoutHoles(
  handle: FileHandle,
  present: Intervals,
  synced: Intervals,
): Promise<Intervals> {
  const { size } = await handle.stat();
  const found = new Intervals(synced.ranges.map(({ start, end }) => ({ start, end: Math.min(end, size) })));
  const buffer = Buffer.allocUnsafeSlow(stepBytes);
  for (const { start, end } of present.ranges) {
    let offset = start;
    while (offset < end) {
      const sure = Math.min(synced.endOfRun(offset), end);
      if (sure > offset) {
        offset = sure;
        continue;
      }
      const stop = Math.min(end, synced.next(offset), offset + stepBytes);
      const { bytesRead } = await handle.read(buffer, 0, stop - offset, offset);
      const good = beforeZeros(buffer.subarray(0, bytesRead));
      found.add(start, offset + good);
      if (good < stop - offset) break;
      offset = stop;
    }
  }
  return found;
}

const zeros = Buffer.alloc(sector);

function beforeZeros(bytes: Buffer): number {
  for (let at = 0; at < bytes.length; at += sector) {
    const part = bytes.subarray(at, at + sector);
    if (part.equals(part.length === sector ? zeros : zeros.subarray(0, part.length))) return at;
  }
  return bytes.length;
}
