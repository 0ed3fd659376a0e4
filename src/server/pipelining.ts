import type { Socket } from 'node:net';

/** Pipelined requests that a connection may queue before it is no longer read. */
const maxPipelined = 100;

const queueKey = Symbol('pipelined requests');

/** Has a queue while one of its requests is served. */
type PipelinedSocket = Socket & { [queueKey]?: (() => void)[] | undefined };

/**
 * Serialises the requests of a connection. Undefined: the request may be served now; otherwise the promise resolves when
 * the requests before it are done. Call `finishRequest` after each.
 */
export function awaitEarlierRequests(socket: PipelinedSocket): Promise<void> | undefined {
  const queue = socket[queueKey];
  if (!queue) {
    socket[queueKey] = [];
    return undefined;
  }
  if (queue.length >= maxPipelined) socket.pause();
  return new Promise((resolve) => queue.push(resolve));
}

/** Starts the next pipelined request of the connection, if there is one. */
export function finishRequest(socket: PipelinedSocket): void {
  const queue = socket[queueKey];
  const next = queue?.shift();
  if (!queue || !next) {
    socket[queueKey] = undefined;
    return;
  }
  if (queue.length < maxPipelined && socket.isPaused()) socket.resume();
  next();
}
