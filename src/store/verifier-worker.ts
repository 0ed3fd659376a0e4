import { createHash, type Hash } from 'node:crypto';
import { readSync } from 'node:fs';
import { answerCalls } from '../util/worker.ts';

/**
 * Hashes files that are still growing by reading their unbroken prefix back from the page cache. Jobs take turns in
 * slices, so that a small layer does not wait for a large one.
 */

interface Job {
  readonly hash: Hash;
  readonly fd: number;
  offset: number;
  /** How far the file is whole. */
  readable: number;
  finish?: ((hex: string) => void) | undefined;
  fail?: (error: unknown) => void;
}

const slice = Buffer.allocUnsafeSlow(4 * 1024 * 1024);
const jobs = new Map<number, Job>();
let running = false;

function hashSlice(job: Job): void {
  const length = Math.min(slice.length, job.readable - job.offset);
  const read = readSync(job.fd, slice, 0, length, job.offset);
  if (read === 0) throw new Error(`the file ends at ${job.offset}, ${job.readable} bytes were written`);
  job.hash.update(slice.subarray(0, read));
  job.offset += read;
}

function turn(): void {
  running = false;
  for (const job of jobs.values()) {
    try {
      if (job.offset < job.readable) hashSlice(job);
      if (job.offset < job.readable) run();
      else if (job.finish) {
        const { finish } = job;
        job.finish = undefined;
        finish(job.hash.digest('hex'));
      }
    } catch (error) {
      job.readable = job.offset;
      job.fail?.(error);
    }
  }
}

function run(): void {
  if (running) return;
  running = true;
  setImmediate(turn);
}

answerCalls({
  open({ id, fd, algorithm }: { id: number; fd: number; algorithm: string }) {
    jobs.set(id, { hash: createHash(algorithm), fd, offset: 0, readable: 0 });
  },
  advance({ id, to }: { id: number; to: number }) {
    const job = jobs.get(id);
    if (job) job.readable = to;
    run();
  },
  /** Bytes that are in no file. */
  feed({ id, bytes }: { id: number; bytes: Uint8Array }) {
    jobs.get(id)?.hash.update(bytes);
  },
  digest({ id }: { id: number }) {
    const job = jobs.get(id);
    if (!job) throw new Error('no such job');
    return new Promise<string>((resolve, reject) => {
      job.finish = resolve;
      job.fail = reject;
      run();
    });
  },
  /** Once this has answered, the file descriptor is not touched again. */
  drop({ id }: { id: number }) {
    jobs.delete(id);
  },
});
