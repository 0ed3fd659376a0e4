import type { Writable } from 'node:stream';
import { MirrorError } from './errors.ts';

/** A sink that one copy writes to. Every wait rejects with `client-gone` when the sink closes, even where Node would never call back. */
export class Outlet {
  readonly #sink: Writable;
  readonly #waits = new Set<() => void>();
  #closed: boolean;

  readonly #closeListener = (): void => {
    this.#closed = true;
    for (const abandon of this.#waits) abandon();
  };

  constructor(sink: Writable) {
    this.#sink = sink;
    this.#closed = sink.destroyed;
    sink.once('close', this.#closeListener);
  }

  /** Resolves when the bytes are flushed: the buffers may then be reused. */
  write(...parts: readonly Uint8Array[]): Promise<void> {
    const last = parts.length - 1;
    return this.#wait((done) => {
      if (last > 0) this.#sink.cork();
      parts.forEach((part, i) => void this.#sink.write(part, i === last ? done : undefined));
      if (last > 0) this.#sink.uncork();
    });
  }

  end(bytes?: Uint8Array): Promise<void> {
    return this.#wait((done) => void this.#sink.end(bytes, done));
  }

  /** Waits for an outside event. `register` starts listening and returns a function that stops it. */
  async until(register: (wake: () => void) => () => void): Promise<void> {
    let unregister: (() => void) | undefined;
    try {
      await this.#wait((done) => {
        unregister = register(done);
      });
    } finally {
      unregister?.();
    }
  }

  /** Aborts when the sink closes. */
  get gone(): AbortSignal {
    const gone = new AbortController();
    const abort = (): void => gone.abort(new MirrorError('client-gone', 'the client disconnected'));
    if (this.#closed) abort();
    else this.#waits.add(abort);
    return gone.signal;
  }

  close(): void {
    this.#sink.off('close', this.#closeListener);
  }

  #wait(start: (done: (error?: Error | null) => void) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const abandon = (cause?: unknown): void => {
        this.#waits.delete(abandon);
        reject(new MirrorError('client-gone', 'the client disconnected', { cause }));
      };
      if (this.#closed) {
        abandon();
        return;
      }
      this.#waits.add(abandon);
      start((error) => {
        if (error) {
          abandon(error);
          return;
        }
        this.#waits.delete(abandon);
        resolve();
      });
    });
  }
}

/** Runs `write` and ends the sink; if `write` rejects, the sink is not ended. */
export async function writeTo(sink: Writable, write: (outlet: Outlet) => Promise<void>): Promise<void> {
  const outlet = new Outlet(sink);
  try {
    await write(outlet);
    await outlet.end();
  } finally {
    outlet.close();
  }
}
