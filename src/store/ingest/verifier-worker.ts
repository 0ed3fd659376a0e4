import { createHash, type Hash } from 'node:crypto';
import { readSync } from 'node:fs';
import { answerCalls } from '../../util/worker.ts';

/**
 * Hashes files that are still growing by reading their unbroken prefix back from the page cache. Jobs are hashed
 * in alternating slices, so that a small layer does not wait for a large one.
 */

interface Job {
  readonly hash: Hash;
  readonly fd: number;
  offset: number;
  /** End of the contiguous prefix. */
  readable: number;
  /** Callers waiting until all readable bytes are hashed. */
  waiting: { resolve: () => void; reject: (error: Error) => void }[];
}

const sliceBytes = 4 * 1024 * 1024;
/** Fits into a core's cache between read and hash. */
const step = Buffer.allocUnsafeSlow(256 * 1024);
const jobs = new Map<number, Job>();
let isScheduled = false;

function hashSlice(job: Job): void {
  const end = Math.min(job.readable, job.offset + sliceBytes);
  while (job.offset < end) {
    const read = readSync(job.fd, step, 0, Math.min(step.length, end - job.offset), job.offset);
    if (read === 0) throw new Error(`the file ends at ${job.offset}, ${job.readable} bytes were written`);
    job.hash.update(step.subarray(0, read));
    job.offset += read;
  }
}

function runSlices(): void {
  isScheduled = false;
  for (const job of jobs.values()) {
    try {
      if (job.offset < job.readable) hashSlice(job);
      if (job.offset < job.readable) schedule();
      else for (const { resolve } of job.waiting.splice(0)) resolve();
    } catch (error) {
      job.readable = job.offset;
      for (const { reject } of job.waiting.splice(0)) reject(error as Error);
    }
  }
}

function schedule(): void {
  if (isScheduled) return;
  isScheduled = true;
  setImmediate(runSlices);
}

async function whenCaughtUp(id: number): Promise<Job> {
  const job = jobs.get(id);
  if (!job) throw new Error('no such job');
  await new Promise<void>((resolve, reject) => {
    job.waiting.push({ resolve, reject });
    schedule();
  });
  return job;
}

answerCalls({
  open({ id, fd, algorithm }: { id: number; fd: number; algorithm: string }) {
    jobs.set(id, { hash: createHash(algorithm), fd, offset: 0, readable: 0, waiting: [] });
  },
  advance({ id, to }: { id: number; to: number }) {
    const job = jobs.get(id);
    if (job) job.readable = to;
    schedule();
  },
  /** Hashes bytes that are in no file. */
  feed({ id, bytes }: { id: number; bytes: Uint8Array }) {
    jobs.get(id)?.hash.update(bytes);
  },
  async reached({ id }: { id: number }) {
    await whenCaughtUp(id);
  },
  async digest({ id }: { id: number }) {
    return (await whenCaughtUp(id)).hash.digest('hex');
  },
  /** Copies the hash to a new job, which is continued by `feed`. */
  async fork({ id, to }: { id: number; to: number }) {
    const { hash } = await whenCaughtUp(id);
    jobs.set(to, { hash: hash.copy(), fd: -1, offset: 0, readable: 0, waiting: [] });
  },
  /** Once answered, the file descriptor is not used any more. */
  drop({ id }: { id: number }) {
    jobs.delete(id);
  },
});
