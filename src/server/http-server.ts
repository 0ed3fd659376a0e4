import { once } from 'node:events';
import { createServer, type RequestListener, type Server } from 'node:http';

/** A client that accepts no byte for that long is cut. */
const stuckAfterMs = 5 * 60_000;
const closeIdleEveryMs = 50;

/** An HTTP server with our limits. `stuckMs` is for tests. */
export function createHttpServer(handler: RequestListener, stuckMs = stuckAfterMs): Server {
  const server = createServer(
    {
      // Longer than Go's clients keep idle connections: whoever closes first must not be us.
      keepAliveTimeout: 130_000,
      headersTimeout: 30_000,
      requestTimeout: 60_000,
      // Ranges of lazy pullers come in long headers.
      maxHeaderSize: 128 * 1024,
      noDelay: true,
    },
    handler,
  );
  // Whoever sends a body gets no invitation to go on: all that takes a body is refused.
  server.on('checkContinue', handler);
  // Node calls when nothing has moved, not even within one large write.
  server.setTimeout(stuckMs, (socket) => {
    if (socket.writableLength > 0) socket.destroy();
    // It waits for us.
    else socket.setTimeout(stuckMs);
  });
  return server;
}

/** Resolves when the last answer has been sent; connections that are kept alive for a next request are closed. */
export async function closeHttpServer(server: Server): Promise<void> {
  if (!server.listening) return;
  const closed = once(server, 'close');
  server.close();
  const sweep = setInterval(() => server.closeIdleConnections(), closeIdleEveryMs);
  await closed;
  clearInterval(sweep);
}
