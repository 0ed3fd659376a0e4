import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { test } from 'node:test';
import { closeHttpServer, createHttpServer } from '../../../src/server/http-server.ts';

test('a client that accepts no byte for too long is cut; one that waits for us, or reads slowly, is not', async (t) => {
  const responses = new Map<string, ServerResponse>();
  const server = createHttpServer((req, res) => responses.set(req.url ?? '', res), { stuckMs: 400 }).listen(
    0,
    '127.0.0.1',
  );
  await once(server, 'listening');
  const open = (target: string) => {
    const client = connect((server.address() as AddressInfo).port, '127.0.0.1');
    client.on('error', () => undefined).pause();
    client.write(`GET ${target} HTTP/1.1\r\nHost: x\r\n\r\n`);
    return client;
  };
  const [stuck, waiting, slow] = ['/stuck', '/waiting', '/slow'].map(open);
  assert.ok(stuck && waiting && slow);
  t.after(async () => {
    for (const client of [stuck, waiting, slow]) client.destroy();
    await closeHttpServer(server);
  });
  while (responses.size < 3) await new Promise(setImmediate);
  const [atStuck, atWaiting, atSlow] = ['/stuck', '/waiting', '/slow'].map((target) => responses.get(target));
  assert.ok(atStuck && atWaiting && atSlow);
  // More than the kernel takes for a client that does not read.
  for (const res of [atStuck, atSlow]) res.write(Buffer.alloc(64 * 1024 * 1024));
  atWaiting.flushHeaders();
  // Slowly, but so that the kernel opens its window again in time.
  const reading = setInterval(() => void slow.read(), 2);
  await once(atStuck, 'close');
  clearInterval(reading);
  assert.ok(!atWaiting.destroyed);
  assert.ok(!atSlow.destroyed);
});
