import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import type { Digest } from '../../oci/digest.ts';
import { Intervals } from './intervals.ts';

/** The journal entry of an ingest, from which the next ingest resumes. */
export interface Journalled {
  /** Registry that the bytes come from. */
  readonly registry: string;
  readonly digest: Digest;
  readonly path: string;
  readonly size: number | undefined;
  readonly present: Intervals;
  /** Survives a power cut. */
  readonly synced: Intervals;
}

/** What an unfinished ingest left. */
export interface Leftover extends Journalled {
  /** Left by this process: the intervals need no check. */
  readonly isFromThisProcess: boolean;
  /** Bytes from an earlier process, not verified. */
  readonly unproven: Intervals;
}

const sector = 512;
const stepBytes = 1024 * 1024;

/** Identifies this run of the kernel: the page cache survives a process, not the kernel. */
export function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    // A random id matches no later one: only synced bytes count.
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
 * The part of `present` that is really in the file. Unsynced data may be lost even within one run of the kernel: it
 * reads as zeros or lies past the end. Each interval counts up to its first unsynced sector of zeros; a blob that
 * contains such a sector is fetched again from there.
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
      const syncedEnd = Math.min(synced.endOfRun(offset), end);
      if (syncedEnd > offset) {
        offset = syncedEnd;
        continue;
      }
      const stop = Math.min(end, synced.next(offset), offset + stepBytes);
      const { bytesRead } = await handle.read(buffer, 0, stop - offset, offset);
      const intact = beforeZeros(buffer.subarray(0, bytesRead));
      found.add(start, offset + intact);
      if (intact < stop - offset) break;
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
