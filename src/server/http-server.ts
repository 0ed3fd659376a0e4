import { once } from 'node:events';
import { createServer, type RequestListener, type Server } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { Duplex } from 'node:stream';
import { readTls, type TlsFiles } from './tls.ts';

/** A client that accepts no byte for that long is cut. */
const stuckAfterMs = 5 * 60_000;
const closeIdleEveryMs = 50;
const lingerMs = 1000;

export interface HttpServerOptions {
  /** Absent: plain HTTP. */
  tls?: TlsFiles | undefined;
  /** These are for tests. */
  stuckMs?: number;
  headersTimeoutMs?: number;
}

/** An HTTP server with our limits. Throws when its certificate cannot be used. */
export function createHttpServer(handler: RequestListener, options: HttpServerOptions = {}): Server {
  const { tls, stuckMs = stuckAfterMs, headersTimeoutMs = 30_000 } = options;
  const limits = {
    // Longer than Go's clients keep idle connections: whoever closes first must not be us.
    keepAliveTimeout: 130_000,
    headersTimeout: headersTimeoutMs,
    requestTimeout: 2 * headersTimeoutMs,
    connectionsCheckingInterval: headersTimeoutMs / 6,
    // Ranges of lazy pullers come in long headers.
    maxHeaderSize: 128 * 1024,
    noDelay: true,
  };
  const certified = { requestCert: tls?.clientCa !== undefined, handshakeTimeout: 10_000 };
  const server = tls
    ? createTlsServer({ ...limits, ...certified, ...readTls(tls) }, handler)
    : createServer(limits, handler);
  server.on('clientError', refuse);
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

const refusals: Readonly<Record<string, [status: string, message: string]>> = {
  HPE_HEADER_OVERFLOW: ['431 Request Header Fields Too Large', 'more than 128 KiB of headers'],
  HPE_CHUNK_EXTENSIONS_OVERFLOW: ['413 Content Too Large', 'chunk extensions too long'],
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'the request took too long to come'],
};

/** What cannot even be read as a request ends its connection, after an answer if there is none under way. */
function refuse(error: Error & { code?: string; bytesParsed?: number }, socket: Duplex): void {
  // Node keeps the answer that is being written here.
  const isAnswering = Boolean((socket as { _httpMessage?: unknown })._httpMessage);
  // What it goes on to send is no request either, and has been answered.
  if (socket.writableEnded) return;
  if (error.code === 'ECONNRESET' || !socket.writable || isAnswering) {
    socket.destroy();
    return;
  }
  const [status, message] = refusals[error.code ?? ''] ?? ['400 Bad Request', 'not a request in HTTP/1.1'];
  const body = JSON.stringify({ errors: [{ code: 'UNSUPPORTED', message }] });
  const headers = `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close`;
  socket.end(`HTTP/1.1 ${status}\r\n${headers}\r\n\r\n${body}`);
  // Whoever is still sending would lose the answer with the connection.
  setTimeout(() => socket.destroy(), lingerMs).unref();
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
