import { parentPort, Worker, type Transferable } from 'node:worker_threads';

interface Reply {
  id: number;
  value?: unknown;
  error?: Error;
  /** The error's code, which structured cloning drops. */
  code?: string;
}

/**
 * A worker thread that answers calls. It keeps the process alive only during a call. If it dies, pending calls reject and
 * the next call starts it again.
 */
export class WorkerThread {
  readonly #url: URL;
  readonly #name: string;
  readonly #onDeath: (error: Error) => void;
  readonly #calls = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #worker: Worker | undefined;
  #next = 1;
  #starts = 0;
  #isClosed = false;

  /**
   * `name`: a module beside `from` (an `import.meta.url`), without its extension. `onDeath` is called when the thread ends
   * by itself.
   */
  constructor(name: string, from: string, onDeath: (error: Error) => void = () => undefined) {
    const ending = from.endsWith('.ts') ? '.ts' : '.js';
    this.#url = new URL(`./${name}${ending}`, from);
    this.#name = name;
    this.#onDeath = onDeath;
    this.start();
  }

  /** Starts the thread if needed. Returns how often it was started: state of an earlier thread is lost. */
  start(): number {
    if (this.#worker || this.#isClosed) return this.#starts;
    const worker = new Worker(this.#url, { name: this.#name });
    worker.on('message', (reply: Reply) => this.#settle(worker, reply));
    worker.on('error', (error) => this.#died(worker, error as Error));
    worker.on('exit', () => this.#died(worker, new Error(`worker ${this.#name} exited`)));
    worker.unref();
    this.#worker = worker;
    this.#starts += 1;
    return this.#starts;
  }

  call<T>(method: string, args: unknown, transfer: Transferable[] = []): Promise<T> {
    this.start();
    const worker = this.#worker;
    if (!worker) return Promise.reject(new Error(`worker ${this.#name} is closed`));
    const id = this.#next++;
    const answer = new Promise<unknown>((resolve, reject) => this.#calls.set(id, { resolve, reject }));
    worker.ref();
    worker.postMessage({ id, method, args }, transfer);
    return answer as Promise<T>;
  }

  /** Sends a message without reply. */
  tell(method: string, args: unknown): void {
    this.start();
    this.#worker?.postMessage({ id: 0, method, args });
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#worker?.terminate();
  }

  #settle(worker: Worker, reply: Reply): void {
    const call = this.#calls.get(reply.id);
    this.#calls.delete(reply.id);
    if (this.#calls.size === 0) worker.unref();
    if (reply.error)
      call?.reject(Object.assign(reply.error, reply.code !== undefined && { code: reply.code }));
    else call?.resolve(reply.value);
  }

  #died(worker: Worker, error: Error): void {
    if (this.#worker !== worker) return;
    this.#worker = undefined;
    for (const call of this.#calls.values()) call.reject(error);
    this.#calls.clear();
    if (!this.#isClosed) this.#onDeath(error);
  }
}

/** Answers calls inside the worker thread. A thrown value rejects the call. */
export function answerCalls(methods: Record<string, (args: never) => unknown>): void {
  parentPort?.on('message', ({ id, method, args }: { id: number; method: string; args: never }) => {
    void (async () => {
      try {
        const value = await methods[method]?.(args);
        if (id !== 0) parentPort?.postMessage({ id, value });
      } catch (error) {
        const { code } = error as { code?: unknown };
        if (id !== 0) parentPort?.postMessage({ id, error, ...(typeof code === 'string' && { code }) });
      }
    })();
  });
}
