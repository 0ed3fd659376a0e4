import type { ServerResponse } from 'node:http';

const sweepEveryMs = 30_000;
/** A client that accepts no byte for that long is cut. */
const stuckAfterMs = 5 * 60_000;

/** The answers under way that wait for their clients: one sweep for all of them, instead of a timer for each. */
export class Transfers {
  readonly #running = new Map<ServerResponse, { bytes: number; since: number }>();
  readonly #timer = setInterval(() => this.sweep(Date.now()), sweepEveryMs).unref();

  /** Watches an answer while `work` writes it. */
  async watch(res: ServerResponse, work: () => Promise<void>): Promise<void> {
    this.#running.set(res, { bytes: -1, since: 0 });
    // The copy is told of a broken connection by 'close'; an 'error' that nobody listens to would end the process.
    res.on('error', () => undefined);
    try {
      await work();
    } finally {
      this.#running.delete(res);
    }
  }

  /** `now` in ms. */
  sweep(now: number): void {
    for (const [res, seen] of this.#running) {
      const { socket } = res;
      // Answers that wait behind another on a connection that has died are told by nobody else.
      if (res.req.socket.destroyed) res.destroy();
      else if (!socket || socket.writableLength === 0 || socket.bytesWritten !== seen.bytes) {
        this.#running.set(res, { bytes: socket?.bytesWritten ?? -1, since: now });
      } else if (now - seen.since >= stuckAfterMs) res.destroy();
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
