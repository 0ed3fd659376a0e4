import assert from 'node:assert/strict';
import { Agent, request as requestPlainly, type IncomingHttpHeaders } from 'node:http';
import { request as requestOverTls, Agent as TlsAgent, type AgentOptions } from 'node:https';

export interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  /** The connection broke before the body was complete. */
  readonly broken: boolean;
}

export interface Ask {
  method?: string;
  headers?: Record<string, string>;
  /** Called with each chunk; returning `false` closes the connection. */
  onData?: (chunk: Buffer, total: number) => boolean | Promise<void> | undefined;
  onHeaders?: (headers: IncomingHttpHeaders) => void;
  body?: string | Buffer;
  agent?: Agent;
  signal?: AbortSignal;
  tls?: AgentOptions;
  /** Raw request target in place of the URL's path. */
  target?: string;
}

/** One request on its own connection. A broken response resolves too, with `broken` set. */
export function ask(url: string, options: Ask = {}): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const { hostname, port, protocol } = new URL(url);
    // The target as written: URL would normalise it.
    const path = options.target ?? url.slice(url.indexOf('/', 'https://'.length));
    const isTls = protocol === 'https:';
    const request = isTls ? requestOverTls : requestPlainly;
    const req = request({
      agent: options.agent ?? (isTls ? new TlsAgent({ ...options.tls }) : new Agent({ keepAlive: false })),
      hostname,
      port,
      path,
      method: options.method ?? 'GET',
      headers: options.headers ?? {},
      ...(options.signal && { signal: options.signal }),
    });
    req.on('error', reject);
    req.on('response', (res) => {
      options.onHeaders?.(res.headers);
      const chunks: Buffer[] = [];
      let total = 0;
      const end = (broken: boolean): void =>
        resolve({ status: res.statusCode ?? 0, headers: res.headers, body: Buffer.concat(chunks), broken });
      res.on('data', (chunk: Buffer) => {
        chunks.push(chunk);
        total += chunk.length;
        const next = options.onData?.(chunk, total);
        if (next === false) req.destroy();
        else if (next instanceof Promise) {
          res.pause();
          void next.then(() => res.resume());
        }
      });
      res.on('end', () => end(!res.complete));
      res.on('error', () => end(true));
      res.on('close', () => end(!res.complete));
    });
    req.end(options.body);
  });
}

/** OCI error code and message of a response. */
export function errorOf(reply: Reply): { code: string; message: string } {
  const { errors } = JSON.parse(reply.body.toString()) as { errors: [{ code: string; message: string }] };
  return errors[0];
}

/** Compares large bodies without assert's slow diff. */
export function sameBytes(actual: Buffer, expected: Buffer): void {
  assert.ok(actual.equals(expected), `${actual.length} bytes are not the ${expected.length} expected ones`);
}
