import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * The upstream of the benchmarks: `node upstream.ts '{ "sizes": [...], "latencyMs": 50, "bytesPerSecond": 20e6 }'` serves
 * blobs of these sizes and an image of the first eight, and prints its port and digests as JSON. `bytesPerSecond` is per
 * connection, `latencyMs` per round trip.
 */
interface Options {
  readonly sizes: readonly number[];
  readonly latencyMs?: number;
  readonly bytesPerSecond?: number;
}

const { sizes, latencyMs = 0, bytesPerSecond = Infinity } = JSON.parse(process.argv[2] ?? '{}') as Options;
const stepBytes = bytesPerSecond === Infinity ? 4 * 1024 * 1024 : 64 * 1024;
const seen = new WeakSet();
const stats = { bytes: 0, requests: 0 };

function makeBlob(size: number, seed: number): Buffer {
  const block = createHash('shake256', { outputLength: 65_536 }).update(`${seed}`).digest();
  const bytes = Buffer.allocUnsafeSlow(size).fill(block);
  for (let at = 0; at + 4 <= size; at += block.length) bytes.writeUInt32LE(at / block.length, at);
  return bytes;
}

const digestOf = (bytes: Buffer): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

const layers = sizes.map((size, i) => makeBlob(size, i));
const config = Buffer.from('{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}');
const describe = (bytes: Buffer, mediaType: string): object => ({
  mediaType,
  digest: digestOf(bytes),
  size: bytes.length,
});
const manifestType = 'application/vnd.oci.image.manifest.v1+json';
const manifest = Buffer.from(
  JSON.stringify({
    schemaVersion: 2,
    mediaType: manifestType,
    config: describe(config, 'application/vnd.oci.image.config.v1+json'),
    layers: layers.slice(0, 8).map((layer) => describe(layer, 'application/vnd.oci.image.layer.v1.tar+gzip')),
  }),
);
const contents = new Map<string, { bytes: Buffer; type: string }>([
  ...[config, ...layers].map(
    (bytes) => [digestOf(bytes), { bytes, type: 'application/octet-stream' }] as const,
  ),
  [digestOf(manifest), { bytes: manifest, type: manifestType }],
  ['latest', { bytes: manifest, type: manifestType }],
]);

async function answer(req: IncomingMessage, res: ServerResponse): Promise<void> {
  const path = (req.url ?? '').split('?')[0] ?? '';
  if (path === '/stats') {
    res.end(JSON.stringify(stats));
    stats.bytes = 0;
    stats.requests = 0;
    return;
  }
  // The handshake costs a round trip too.
  const trips = seen.has(req.socket) ? 1 : 2;
  seen.add(req.socket);
  if (latencyMs > 0) await sleep(trips * latencyMs);
  if (path === '/v2/') {
    res.writeHead(200, { 'content-type': 'application/json', 'content-length': 2 }).end('{}');
    return;
  }
  stats.requests += 1;
  const reference = path.slice(path.lastIndexOf('/') + 1);
  const found = contents.get(reference);
  if (!found) {
    res.writeHead(404, { 'content-length': 0 }).end();
    return;
  }
  const { bytes, type } = found;
  const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(req.headers.range ?? '') ?? [];
  const start = Number(first ?? 0);
  const end = last ? Math.min(Number(last) + 1, bytes.length) : bytes.length;
  res.writeHead(first === undefined ? 200 : 206, {
    'content-type': type,
    'content-length': end - start,
    'accept-ranges': 'bytes',
    'docker-content-digest': reference.includes(':') ? reference : digestOf(bytes),
    ...(first !== undefined && { 'content-range': `bytes ${start}-${end - 1}/${bytes.length}` }),
  });
  if (req.method === 'HEAD') res.end();
  else await send(res, bytes.subarray(start, end));
}

async function send(res: ServerResponse, bytes: Buffer): Promise<void> {
  const { promise: closed, resolve: close } = Promise.withResolvers<unknown>();
  res.once('close', close);
  const started = performance.now();
  for (let at = 0; at < bytes.length && !res.destroyed; at += stepBytes) {
    const step = bytes.subarray(at, at + stepBytes);
    const early = (at / bytesPerSecond) * 1000 - (performance.now() - started);
    if (early > 1) await sleep(early);
    await Promise.race([new Promise<void>((resolve) => res.write(step, () => resolve())), closed]);
    stats.bytes += step.length;
  }
  res.end();
}

const server = createServer({ keepAliveTimeout: 60_000 }, (req, res) => void answer(req, res));
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo;
  process.stdout.write(
    `${JSON.stringify({ port, layers: layers.map(digestOf), config: digestOf(config), manifest: digestOf(manifest) })}\n`,
  );
});
