import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { errorOf, type Reply } from '../support/http.ts';
import { imageOf, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream, type Script } from '../support/upstream.ts';

const image = imageOf([randomBlob(100_000)]);
const layer = image.layers[0]!;
const repeat = <T>(count: number, work: (i: number) => Promise<T>): Promise<T[]> =>
  Promise.all(Array.from({ length: count }, (_, i) => work(i)));

describe('an ill upstream', () => {
  let upstream: Upstream;
  let mirror: TestMirror;

  beforeEach(async () => {
    upstream = await Upstream.start({ auth: 'bearer', cdn: true });
    upstream.addImage('library/x', image, '1');
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { fetch: { headersTimeout: '400ms', firstByteTimeout: '3s' } },
    });
    mirror.clock.run();
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const get = (tag: string): Promise<Reply> => mirror.get(`/v2/library/x/manifests/${tag}`);
  const blob = (): Promise<Reply> => mirror.get(`/v2/library/x/blobs/${layer.digest}`);
  const shut = (host: string): Promise<number> =>
    mirror.metric(`layercache_breaker_open{registry="docker.io",host="${host}"}`);

  async function warm(): Promise<void> {
    await get('1');
    await mirror.get(`/v2/library/x/blobs/${image.config.digest}`);
    await blob();
    await until(async () => (await mirror.files('blobs')).length === 3, 'all is stored');
  }

  test('down: misses fail at once, what is cached goes on, and it is back soon after its return', async () => {
    await warm();
    await upstream.stop();
    const started = performance.now();
    const replies = await repeat(20, (i) => get(`missing-${i}`));
    assert.ok(performance.now() - started < 3000);
    for (const reply of replies) {
      assert.equal(reply.status, 503);
      assert.equal(errorOf(reply).code, 'UNAVAILABLE');
    }
    assert.equal(await shut('registry'), 1);
    const refused = await get('missing-20');
    assert.match(errorOf(refused).message, /not sent, since 127\.0\.0\.1:\d+ has been failing/);
    assert.equal(refused.headers['retry-after'], '1');
    assert.equal((await blob()).headers['x-cache'], 'hit');
    mirror.clock.advance(6 * 60_000);
    const stale = await get('1');
    assert.equal(stale.headers['x-cache'], 'stale');
    assert.equal(stale.headers['x-cache-reason'], 'upstream-down');
    await upstream.resume();
    mirror.clock.advance(5000);
    upstream.addManifest('library/x', image.manifest, '2');
    // Together they wait for the one that is let through first.
    for (const reply of await repeat(20, () => get('2'))) assert.equal(reply.status, 200);
    assert.equal(await shut('registry'), 0);
    await until(() => mirror.log.includes('circuit closed: host answers again'), 'the log tells');
  });

  test('silent: one timeout, not one for each request', async () => {
    await get('1');
    upstream.script('manifest', () => undefined);
    const started = performance.now();
    for (const reply of await repeat(30, (i) => get(`missing-${i}`))) {
      assert.ok(reply.status === 503 || reply.status === 504);
      assert.equal(errorOf(reply).code, 'UNAVAILABLE');
    }
    for (let i = 0; i < 10; i++) assert.ok((await get(`later-${i}`)).status >= 503);
    assert.ok(performance.now() - started < 1200, String(performance.now() - started));
    // As many as are asked together, and none after them.
    assert.ok(upstream.count('manifest') <= 19);
    upstream.behave();
    mirror.clock.advance(5000);
    assert.equal((await get('3')).status, 404);
  });

  test('silence towards one request, while others are answered, shuts nobody out', async () => {
    await get('1');
    upstream.script('manifest', () => undefined, { match: ({ reference }) => reference === 'slow' });
    const slow = get('slow');
    await until(() => upstream.count('manifest', { reference: 'slow' }) === 1, 'it is asked');
    await get('other');
    assert.equal((await slow).status, 504);
    assert.equal((await get('another')).status, 404);
  });

  test('one blob that fails for ever, or one repo that is not answered, stops no other', async () => {
    upstream.script('blob', (_call, _req, res) => void res.writeHead(500).end(), {
      match: ({ reference }) => reference === layer.digest,
    });
    upstream.script('manifest', () => undefined, { match: ({ repo }) => repo === 'library/slow' });
    const stop = new AbortController();
    const bad = repeat(5, async () => {
      while (!stop.signal.aborted) await blob();
    });
    const slow = repeat(20, (i) => mirror.get(`/v2/library/slow/manifests/${i}`));
    for (let i = 0; i < 20; i++) {
      upstream.addManifest(`library/r${i}`, image.manifest, '1');
      assert.equal((await mirror.get(`/v2/library/r${i}/manifests/1`)).status, 200, String(i));
    }
    stop.abort();
    await Promise.all([bad, slow]);
  });

  test('a CDN that is down is no reason not to ask the registry', async () => {
    upstream.script('cdn', (_call, req) => void req.socket.destroy());
    await mirror.get(`/v2/library/x/blobs/${image.config.digest}`);
    await blob();
    assert.equal(await shut('other'), 1);
    const calls = upstream.count('cdn');
    assert.equal((await blob()).status, 503);
    assert.equal(upstream.count('cdn'), calls);
    assert.equal((await get('1')).status, 200);
    upstream.behave();
    mirror.clock.advance(5000);
    assert.equal((await blob()).status, 200);
  });

  test('a token server that is down, silent, or limits us: cached content is served, and it is asked rarely', async () => {
    await warm();
    const scripts: Script[] = [
      (_call, _req, res) => void res.writeHead(500).end(),
      () => undefined,
      (_call, _req, res) => void res.writeHead(429, { 'retry-after': '5' }).end(),
    ];
    for (const script of scripts) {
      mirror.clock.advance(10 * 60_000);
      upstream.forget();
      upstream.script('token', script);
      for (let i = 0; i < 10; i++) {
        assert.equal((await get('1')).headers['x-cache'], 'stale');
        assert.equal((await blob()).headers['x-cache'], 'hit');
        assert.ok((await get(`missing-${i}`)).status >= 429);
      }
      assert.ok(upstream.count('token') <= 6, String(upstream.count('token')));
      upstream.behave();
      mirror.clock.advance(6000);
      assert.equal((await get('1')).headers['x-cache'], 'revalidated');
    }
  });

  for (const [what, headers, waitMs] of [
    ['with Retry-After', { 'retry-after': '30' }, 30_000],
    ['without', {}, 1_300],
  ] as const) {
    test(`429 on everything, ${what}: a handful of calls, and one at a time after that`, async () => {
      const refuse: Script = (_call, _req, res) =>
        void res
          .writeHead(429, { 'content-type': 'text/plain', ...headers })
          .end('Too Many Requests (HAP429).');
      for (const kind of ['ping', 'manifest', 'blob', 'token'] as const) upstream.script(kind, refuse);
      for (const reply of await repeat(15, (i) => get(`a${i}`))) assert.equal(reply.status, 429);
      for (let i = 0; i < 15; i++) {
        const reply = await (i % 2 ? get(`b${i}`) : blob());
        assert.equal(reply.status, 429);
        assert.equal(errorOf(reply).code, 'TOOMANYREQUESTS');
        assert.ok(Number(reply.headers['retry-after']) >= 1);
      }
      assert.ok(upstream.calls.length <= 3, String(upstream.calls.length));
      upstream.forget();
      mirror.clock.advance(waitMs);
      await repeat(10, (i) => get(`c${i}`));
      assert.equal(upstream.calls.length, 1);
      upstream.behave();
      mirror.clock.advance(35_000);
      assert.equal((await get('1')).status, 200);
    });
  }

  test('a running download goes on by itself when the upstream is back', async () => {
    await mirror.close();
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { fetch: { spanBytes: '128KiB', connectionsPerBlob: 1 } },
    });
    mirror.clock.run();
    const big = randomBlob(1_000_000);
    upstream.addBlob('library/x', big);
    const arrived = Promise.withResolvers<undefined>();
    upstream.script(
      'cdn',
      (_call, req) => {
        arrived.resolve(undefined);
        req.socket.destroy();
      },
      { match: ({ headers }) => headers.range?.startsWith('bytes=262144-') === true },
    );
    const reply = mirror.get(`/v2/library/x/blobs/${big.digest}`);
    await arrived.promise;
    await repeat(8, (i) => mirror.get(`/v2/library/x/blobs/sha256:${String(i).repeat(64)}`));
    await upstream.stop();
    await repeat(8, (i) => get(`missing-${i}`));
    upstream.behave();
    await upstream.resume();
    assert.ok((await reply).body.equals(big.bytes));
  });

  test('what an outage has cost and what it has not is in the ledger', async () => {
    await warm();
    await upstream.stop();
    mirror.clock.advance(10 * 60_000);
    for (let i = 0; i < 3; i++) {
      await get('1');
      mirror.clock.advance(20_000);
    }
    const item = (name: string): Promise<number> =>
      mirror.metric(`layercache_ledger{registry="docker.io",item="${name}"}`);
    const check = async (): Promise<void> => {
      assert.equal(await item('client_pulls'), 4);
      assert.equal(await item('upstream_pulls'), 1);
      assert.equal(await item('token_calls'), 1);
      const bytes = image.manifest.bytes.length + image.config.bytes.length + layer.bytes.length;
      assert.equal(await item('fetched_bytes'), bytes);
      assert.equal(await item('served_bytes'), bytes + 3 * image.manifest.bytes.length);
      assert.equal(Math.floor(await item('bridged_seconds')), 41);
    };
    await check();
    await mirror.restart();
    await check();
  });
});

test('a host that accepts and never answers, with limits as they are by default but shorter', async () => {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => sockets.add(socket)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const mirror = await TestMirror.start({
    upstream: `http://127.0.0.1:${port}`,
    config: { fetch: { firstByteTimeout: '500ms' } },
  });
  mirror.clock.run();
  const started = performance.now();
  for (const reply of await repeat(30, (i) => mirror.get(`/v2/library/x/manifests/${i}`)))
    assert.ok([503, 504].includes(reply.status));
  for (let i = 0; i < 30; i++) {
    const reply = await mirror.get(`/v2/library/x/blobs/sha256:${String(i % 10).repeat(64)}`);
    assert.ok([503, 504].includes(reply.status));
  }
  assert.ok(performance.now() - started < 1500);
  await mirror.close();
  for (const socket of sockets) socket.destroy();
  server.close();
});
