import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Blob } from './images.ts';
import type { Call, Script } from './upstream.ts';

export interface BodyOptions {
  /** Breaks the connection after so many bytes. */
  cutAfter?: number;
  /** Stalls after so many bytes. */
  stallAfter?: number;
  /** Ignores Range. */
  ignoresRange?: boolean;
  bytesPerSecond?: number;
  headers?: Record<string, string>;
  /** Sent instead of the blob's bytes. */
  bytes?: Buffer;
  /** Delay of the headers. */
  latencyMs?: number;
}

const stepBytes = 64 * 1024;

/** Answers a GET of a blob with the given misbehaviour. `call.sent` counts bytes handed to the connection. */
export function sendBlob(blob: Blob, options: BodyOptions = {}): Script {
  return async (call, req, res) => {
    if (options.latencyMs) await sleep(options.latencyMs);
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(req.headers.range ?? '') ?? [];
    const size = blob.bytes.length;
    const ranged = first !== undefined && !options.ignoresRange;
    const start = ranged ? Number(first) : 0;
    const end = ranged && last ? Math.min(Number(last) + 1, size) : size;
    res.writeHead(ranged ? 206 : 200, {
      'content-length': end - start,
      ...(ranged && { 'content-range': `bytes ${start}-${end - 1}/${size}` }),
      ...options.headers,
    });
    await drip(call, req, res, (options.bytes ?? blob.bytes).subarray(start, end), options);
  };
}

async function drip(
  call: Call,
  req: IncomingMessage,
  res: ServerResponse,
  bytes: Buffer,
  { cutAfter = Infinity, stallAfter = Infinity, bytesPerSecond = Infinity }: BodyOptions,
): Promise<void> {
  const stopAt = Math.min(cutAfter, stallAfter, bytes.length);
  const started = performance.now();
  const { promise: closed, resolve: close } = Promise.withResolvers<unknown>();
  req.socket.once('close', close);
  for (let at = 0; at < stopAt && !req.socket.destroyed; at += stepBytes) {
    const step = bytes.subarray(at, Math.min(at + stepBytes, stopAt));
    await Promise.race([new Promise<void>((resolve) => res.write(step, () => resolve())), closed]);
    call.sent += step.length;
    const early = (at / bytesPerSecond) * 1000 - (performance.now() - started);
    if (early > 1) await sleep(early);
  }
  req.socket.off('close', close);
  if (cutAfter <= stopAt) req.socket.destroy();
  else if (stallAfter > stopAt) res.end();
}
