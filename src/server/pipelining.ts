import type { Socket } from 'node:net';

/** A connection may hold this many requests before it is read no further. */
const maxPipelined = 100;

const waiting = Symbol('waiting');

/** A connection whose request is being served has a line of those that it has sent since. */
interface Busy {
  [waiting]?: (() => void)[] | undefined;
}

/**
 * Requests of one connection are served one after the other, however many it sends at once: what waits for its turn
 * takes nobody else's place. Undefined: it is its turn.
 */
export function turnOf(socket: Socket & Busy): Promise<void> | undefined {
  const line = socket[waiting];
  if (!line) {
    socket[waiting] = [];
    return undefined;
  }
  if (line.length >= maxPipelined) socket.pause();
  return new Promise((resolve) => line.push(resolve));
}

/** It has been served. */
export function nextTurn(socket: Socket & Busy): void {
  const line = socket[waiting];
  const next = line?.shift();
  if (!line || !next) {
    socket[waiting] = undefined;
    return;
  }
  if (line.length < maxPipelined && socket.isPaused()) socket.resume();
  next();
}
