import { WorkerThread } from '../util/worker.ts';

/** Worker threads for blocking disk access. */
export class DiskWorkers {
  /** For blobs and ingests. */
  readonly files: WorkerThread;
  /** Separate from files: writes to the catalog wait for it. */
  readonly catalog: WorkerThread;

  /** `onDeath`: called when a thread died; it is restarted. */
  constructor(onDeath: (error: Error) => void) {
    this.files = new WorkerThread('disk-worker', import.meta.url, onDeath);
    this.catalog = new WorkerThread('disk-worker', import.meta.url, onDeath);
  }

  /** Runs a long operation on a thread of its own; `signal` terminates it. */
  async callOnOwnThread(method: 'check' | 'backup', files: object, signal?: AbortSignal): Promise<void> {
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
