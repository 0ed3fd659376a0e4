import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sameBytes } from '../support/http.ts';
import { imageOf, largeBlob, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream, type Script } from '../support/upstream.ts';

const MiB = 1024 * 1024;
const limitMs = 1000;

/** Answers rightly, but so late. */
function after(ms: number): Script {
  return (_call, _req, _res, next) => void setTimeout(next, ms);
}

describe('one deadline lies over everything before the first byte', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const image = imageOf([randomBlob(300_000)]);
  const layer = image.layers[0]!;

  beforeEach(async () => {
    upstream = await Upstream.start();
    upstream.addImage('library/x', image, '1');
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { fetch: { firstByteTimeout: `${limitMs}ms`, prefetch: 'off' } },
    });
    mirror.clock.run();
  });
  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  async function timed<T>(work: Promise<T>): Promise<{ value: T; ms: number }> {
    const before = performance.now();
    const value = await work;
    return { value, ms: performance.now() - before };
  }

  test('HEAD and GET of a tag share it', async () => {
    upstream.script('manifest', after(0.7 * limitMs));
    const { value, ms } = await timed(mirror.get('/v2/x/manifests/1'));
    assert.equal(value.status, 504);
    assert.ok(ms < 1.4 * limitMs, `${ms} ms`);
  });

  test('what is stale is served when it is over', async () => {
    for (const path of ['manifests/1', `blobs/${layer.digest}`, `blobs/${image.config.digest}`])
      assert.equal((await mirror.get(`/v2/x/${path}`)).status, 200);
    const moved = imageOf([randomBlob(10)]);
    upstream.addImage('library/x', moved, '1');
    mirror.clock.advance(10 * 60_000);
    upstream.script('manifest', after(0.7 * limitMs));
    const { value, ms } = await timed(mirror.get('/v2/x/manifests/1'));
    assert.equal(value.headers['x-cache'], 'stale');
    sameBytes(value.body, image.manifest.bytes);
    assert.ok(ms < 1.4 * limitMs, `${ms} ms`);
  });

  test('who waits for another repo’s question does not wait longer than for its own', async () => {
    upstream.addBlob('library/y', layer);
    upstream.script('blob', after(0.8 * limitMs), { match: ({ method }) => method === 'GET' });
    upstream.script('blob', after(0.8 * limitMs), { match: ({ method }) => method === 'HEAD' });
    await mirror.stop();
    mirror.reconfigure({ upstreamConfig: { private: true } });
    await mirror.start();
    mirror.clock.run();
    const first = mirror.get(`/v2/x/blobs/${layer.digest}`);
    await until(() => upstream.count('blob') === 1, 'the first one is asked for');
    const { value, ms } = await timed(mirror.get(`/v2/library/y/blobs/${layer.digest}`));
    assert.equal(value.status, 504);
    assert.ok(ms < 1.4 * limitMs, `${ms} ms`);
    assert.equal((await first).status, 200);
  });
});

describe('HTTP', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const image = imageOf([largeBlob(2 * MiB)]);
  const layer = image.layers[0]!;

  beforeEach(async () => {
    upstream = await Upstream.start();
    upstream.addImage('library/x', image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url });
  });
  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  test('numbers of any size in a Range go upstream as digits, or not at all', async () => {
    for (const range of [
      '1000000000000000000000000-',
      '0-99999999999999999999999999',
      '-9999999999999999999999',
    ]) {
      const reply = await mirror.get(`/v2/x/blobs/${layer.digest}`, { headers: { range: `bytes=${range}` } });
      assert.ok([206, 416].includes(reply.status), `${range}: ${reply.status}`);
      if (reply.status === 206) sameBytes(reply.body, layer.bytes);
      await mirror.get(`/v2/x/blobs/${image.config.digest}`);
    }
    for (const { headers } of upstream.calls) assert.match(headers.range ?? 'bytes=0-', /^bytes=\d+-\d*$/);
  });

  test('a target in absolute form is that of its path, and its host counts', async () => {
    const raw = async (target: string): Promise<string> => {
      const socket = connect(mirror.service.address.port, '127.0.0.1');
      await once(socket, 'connect');
      socket.write(`GET ${target} HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n`);
      return text(socket.setEncoding('latin1'));
    };
    assert.match(await raw('http://mirror.example/v2/library/x/manifests/1'), /^HTTP\/1\.1 200/);
    assert.match(await raw('HTTP://mirror.example:80/v2/'), /^HTTP\/1\.1 200/);
    assert.match(await raw('http://mirror.example'), /^HTTP\/1\.1 404/);
    assert.match(await raw('ftp://mirror.example/v2/'), /^HTTP\/1\.1 404/);
  });

  test('who has it already is told so, and nothing is fetched for it', async () => {
    const ifNoneMatch = (digest: string) => ({ headers: { 'if-none-match': `"${digest}"` } });
    await mirror.head('/v2/x/manifests/1');
    upstream.forget();
    const tag = await mirror.get('/v2/x/manifests/1', ifNoneMatch(image.manifest.digest));
    assert.equal(tag.status, 304);
    assert.equal(upstream.count('manifest', { method: 'GET' }), 0, 'no pull is spent');
    const blob = await mirror.get(`/v2/x/blobs/${layer.digest}`, ifNoneMatch(layer.digest));
    assert.equal(blob.status, 304);
    assert.equal(upstream.count('blob', { method: 'GET' }), 0, 'nothing is downloaded');
    const other = await mirror.get('/v2/x/manifests/1', ifNoneMatch(layer.digest));
    assert.equal(other.status, 200);
    const unknown = `sha256:${'0'.repeat(64)}`;
    assert.equal((await mirror.get(`/v2/x/blobs/${unknown}`, ifNoneMatch(unknown))).status, 404);
  });

  test('the size of what is arriving is known without asking', async () => {
    const { promise: go, resolve: open } = Promise.withResolvers<undefined>();
    upstream.script(
      'blob',
      async (_call, _req, res) => {
        res.writeHead(200, { 'content-length': layer.bytes.length });
        res.write(layer.bytes.subarray(0, MiB));
        await go;
        res.end(layer.bytes.subarray(MiB));
      },
      { match: ({ method }) => method === 'GET' },
    );
    const started = Promise.withResolvers<undefined>();
    const pull = mirror.get(`/v2/x/blobs/${layer.digest}`, { onHeaders: () => started.resolve(undefined) });
    await started.promise;
    const head = await mirror.head(`/v2/x/blobs/${layer.digest}`);
    assert.equal(head.headers['content-length'], String(layer.bytes.length));
    assert.equal(head.headers['x-cache'], 'joined');
    assert.equal(upstream.count('blob'), 1);
    open(undefined);
    sameBytes((await pull).body, layer.bytes);
  });
});
