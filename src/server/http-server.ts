import { once } from 'node:events';
import { createServer, type RequestListener, type Server } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { Duplex } from 'node:stream';
import { readTls, type TlsFiles } from './tls.ts';

/** A client that accepts no byte for this long is disconnected. */
const stuckAfterMs = 5 * 60_000;
const closeIdleEveryMs = 50;
const lingerMs = 1000;

export interface HttpServerOptions {
  /** Undefined: plain HTTP. */
  tls?: TlsFiles | undefined;
  /** Overridden by tests. */
  stuckMs?: number;
  headersTimeoutMs?: number;
}

/** An HTTP or HTTPS server with timeouts and header limits. Throws if the certificate is invalid. */
export function createHttpServer(handler: RequestListener, options: HttpServerOptions = {}): Server {
  const { tls, stuckMs = stuckAfterMs, headersTimeoutMs = 30_000 } = options;
  const limits = {
    // Longer than Go clients keep idle connections (90 s): the client must close first, or requests may hit a closed socket.
    keepAliveTimeout: 130_000,
    headersTimeout: headersTimeoutMs,
    requestTimeout: 2 * headersTimeoutMs,
    connectionsCheckingInterval: headersTimeoutMs / 6,
    // Lazy pullers send long Range headers.
    maxHeaderSize: 128 * 1024,
    noDelay: true,
  };
  const tlsOptions = { requestCert: tls?.clientCa !== undefined, handshakeTimeout: 10_000 };
  const server = tls
    ? createTlsServer({ ...limits, ...tlsOptions, ...readTls(tls) }, handler)
    : createServer(limits, handler);
  server.on('clientError', refuse);
  // No `100 Continue`: every request with a body is refused.
  server.on('checkContinue', handler);
  // Called after stuckMs without socket activity.
  server.setTimeout(stuckMs, (socket) => {
    if (socket.writableLength > 0) socket.destroy();
    // Nothing to write: the client is waiting for the mirror.
    else socket.setTimeout(stuckMs);
  });
  return server;
}

const refusals: Readonly<Record<string, [status: string, message: string]>> = {
  HPE_HEADER_OVERFLOW: ['431 Request Header Fields Too Large', 'more than 128 KiB of headers'],
  HPE_CHUNK_EXTENSIONS_OVERFLOW: ['413 Content Too Large', 'chunk extensions too long'],
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'the request took too long to arrive'],
};

/** Answers an unparsable request and closes its connection; mid-response it only closes. */
function refuse(error: Error & { code?: string; bytesParsed?: number }, socket: Duplex): void {
  // Node's field for the response in progress.
  const isAnswering = Boolean((socket as { _httpMessage?: unknown })._httpMessage);
  // Already refused: ignore whatever follows.
  if (socket.writableEnded) return;
  if (error.code === 'ECONNRESET' || !socket.writable || isAnswering) {
    socket.destroy();
    return;
  }
  const [status, message] = refusals[error.code ?? ''] ?? ['400 Bad Request', 'not an HTTP/1.1 request'];
  const body = JSON.stringify({ errors: [{ code: 'UNSUPPORTED', message }] });
  const headers = `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close`;
  socket.end(`HTTP/1.1 ${status}\r\n${headers}\r\n\r\n${body}`);
  // An immediate close could reset the connection before a still-sending client has read the answer.
  setTimeout(() => socket.destroy(), lingerMs).unref();
}

/** Stops listening, closes idle keep-alive connections, and resolves when the last response has been sent. */
export async function closeHttpServer(server: Server): Promise<void> {
  if (!server.listening) return;
  const closed = once(server, 'close');
  server.close();
  const sweep = setInterval(() => server.closeIdleConnections(), closeIdleEveryMs);
  await closed;
  clearInterval(sweep);
}
