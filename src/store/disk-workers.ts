import { WorkerThread } from '../util/worker.ts';

/** The threads that wait for the disk. */
export class DiskWorkers {
  /** For stored and arriving files. */
  readonly files: WorkerThread;
  /** For what is done with the catalog: while writes wait for it, it is not to stand in line behind files. */
  readonly catalog: WorkerThread;

  /** `onDeath` is told when one has ended by itself. */
  constructor(onDeath: (error: Error) => void) {
    this.files = new WorkerThread('disk-worker', import.meta.url, onDeath);
    this.catalog = new WorkerThread('disk-worker', import.meta.url, onDeath);
  }

  /** What takes long, on a thread of its own, so that nothing waits for it; `signal` ends it early. */
  async apart(method: 'check' | 'backup', files: object, signal?: AbortSignal): Promise<void> {
    const thread = new WorkerThread('disk-worker', import.meta.url);
    const end = (): void => void thread.close();
    signal?.addEventListener('abort', end);
    try {
      await thread.call(method, files);
    } finally {
      signal?.removeEventListener('abort', end);
      await thread.close();
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.files.close(), this.catalog.close()]);
  }
}
