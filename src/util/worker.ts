import { parentPort, Worker, type Transferable } from 'node:worker_threads';

interface Reply {
  id: number;
  value?: unknown;
  error?: Error;
  /** Of the error: it does not outlive the copying of one between threads. */
  code?: string;
}

/** A worker thread that answers calls. It never keeps the process alive by itself. */
export class WorkerThread {
  readonly #worker: Worker;
  readonly #calls = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #next = 1;
  #dead: Error | undefined;

  /**
   * `name` is a module beside `from` (an `import.meta.url`) without its ending: `.ts` when run from source,
   * `.js` when built.
   */
  constructor(name: string, from: string) {
    const ending = from.endsWith('.ts') ? '.ts' : '.js';
    this.#worker = new Worker(new URL(`./${name}${ending}`, from), { name });
    this.#worker.on('message', (reply: Reply) => this.#settle(reply));
    this.#worker.on('error', (error) => this.#die(error as Error));
    this.#worker.on('exit', () => this.#die(new Error(`worker ${name} has ended`)));
    this.#worker.unref();
  }

  call<T>(method: string, args: unknown, transfer: Transferable[] = []): Promise<T> {
    if (this.#dead) return Promise.reject(this.#dead);
    const id = this.#next++;
    const answer = new Promise<unknown>((resolve, reject) => this.#calls.set(id, { resolve, reject }));
    this.#worker.ref();
    this.#worker.postMessage({ id, method, args }, transfer);
    return answer as Promise<T>;
  }

  /** A message that wants no answer. */
  tell(method: string, args: unknown): void {
    if (!this.#dead) this.#worker.postMessage({ id: 0, method, args });
  }

  async close(): Promise<void> {
    await this.#worker.terminate();
  }

  #settle(reply: Reply): void {
    const call = this.#calls.get(reply.id);
    this.#calls.delete(reply.id);
    if (this.#calls.size === 0) this.#worker.unref();
    if (reply.error)
      call?.reject(Object.assign(reply.error, reply.code !== undefined && { code: reply.code }));
    else call?.resolve(reply.value);
  }

  #die(error: Error): void {
    this.#dead ??= error;
    for (const call of this.#calls.values()) call.reject(this.#dead);
    this.#calls.clear();
  }
}

/** The other end: answers calls in a worker thread. A thrown value becomes the rejection at the caller. */
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
