import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage } from 'node:http';
import { connect, type AddressInfo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createServer as createTlsServer } from 'node:tls';
import { Authority } from './certificates.ts';
import type { Upstream } from './upstream.ts';

export interface Rented {
  /** An entry of `upstreams`. */
  readonly config: object;
  close(): Promise<void>;
}

/**
 * Registries covered by a pattern: each name leads to a scripted upstream, through a proxy that terminates the tunnel's TLS.
 */
export async function rentRegistries(pattern: string, hosts: Record<string, Upstream>): Promise<Rented> {
  const directory = await mkdtemp(join(tmpdir(), 'layercache-rented-'));
  const pair = await (await Authority.create(directory)).sign('rented');
  const [cert, key] = await Promise.all([readFile(pair.cert), readFile(pair.key)]);
  const sockets = new Set<Socket>();
  const keep = (socket: Socket): Socket => {
    sockets.add(socket);
    return socket.on('error', () => undefined).once('close', () => sockets.delete(socket));
  };
  const ends = Object.entries(hosts).map(([host, upstream]) => {
    const server = createTlsServer({ cert, key }, (socket) => {
      const to = keep(connect(Number(new URL(upstream.url).port), '127.0.0.1'));
      keep(socket).pipe(to).pipe(socket);
      socket.once('close', () => to.destroy());
      to.once('close', () => socket.destroy());
    }).listen(0);
    return { host, server };
  });
  const proxy = createServer().listen(0);
  proxy.on('connect', (req: IncomingMessage, socket: Socket) => {
    keep(socket);
    const host = (req.url ?? '').replace(/:\d+$/, '');
    const end = ends.find((each) => each.host === host);
    if (!end) {
      socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n');
      return;
    }
    const to = keep(connect((end.server.address() as AddressInfo).port, '127.0.0.1'));
    to.once('connect', () => socket.write('HTTP/1.1 200 OK\r\n\r\n'));
    to.once('close', () => socket.destroy());
    socket.once('close', () => to.destroy());
    socket.pipe(to).pipe(socket);
  });
  await Promise.all([proxy, ...ends.map(({ server }) => server)].map((each) => once(each, 'listening')));
  return {
    config: {
      registry: pattern,
      insecureSkipVerify: true,
      proxy: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      for (const { server } of ends) server.close();
      proxy.close();
      await rm(directory, { recursive: true, force: true });
    },
  };
}
