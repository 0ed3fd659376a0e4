import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sameBytes } from '../support/http.ts';
import { imageOf, randomBlob } from '../support/images.ts';
import { TestMirror } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const login = { username: 'me', password: 'pw' };
const dayMs = 24 * 60 * 60 * 1000;

describe('content that came with an account', () => {
  const image = imageOf([randomBlob(200_000)]);
  const layer = image.layers[0]!;
  let upstream: Upstream;
  let mirror: TestMirror;

  beforeEach(async () => {
    upstream = await Upstream.start({ auth: 'bearer', login });
    upstream.addImage('acme/private', image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url, upstreamConfig: { accounts: [login] } });
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const blob = (repo: string, method = 'GET') => mirror.get(`/v2/${repo}/blobs/${layer.digest}`, { method });
  const manifest = (repo: string, method = 'GET') =>
    mirror.get(`/v2/${repo}/manifests/${image.manifest.digest}`, { method });

  test('is 404 through a repo that does not have it, stored or in memory', async () => {
    assert.equal((await blob('acme/private')).status, 200);
    assert.equal((await manifest('acme/private')).status, 200);
    for (const method of ['GET', 'HEAD']) {
      assert.equal((await blob('evil/repo', method)).status, 404);
      assert.equal((await manifest('evil/repo', method)).status, 404);
    }
  });

  test('is 404 through another repo while it is still arriving', async () => {
    const { promise: go, resolve: open } = Promise.withResolvers<undefined>();
    upstream.script(
      'blob',
      async (_call, _req, res) => {
        res.writeHead(200, { 'content-length': layer.bytes.length });
        res.write(layer.bytes.subarray(0, 150_000));
        await go;
        res.end(layer.bytes.subarray(150_000));
      },
      { match: ({ method, repo }) => method === 'GET' && repo === 'acme/private' },
    );
    const started = Promise.withResolvers<undefined>();
    const owner = mirror.get(`/v2/acme/private/blobs/${layer.digest}`, {
      onHeaders: () => started.resolve(undefined),
    });
    const early = blob('evil/repo');
    await started.promise;
    assert.equal((await blob('evil/repo')).status, 404);
    assert.equal((await early).status, 404);
    open(undefined);
    sameBytes((await owner).body, layer.bytes);
  });

  test('is served for another repo once the upstream has confirmed it, without a second download', async () => {
    await blob('acme/private');
    await manifest('acme/private');
    upstream.addImage('acme/other', image);
    upstream.forget();
    sameBytes((await blob('acme/other')).body, layer.bytes);
    sameBytes((await manifest('acme/other')).body, image.manifest.bytes);
    assert.equal(
      upstream.count('blob', { method: 'GET' }) + upstream.count('manifest', { method: 'GET' }),
      0,
    );
    assert.equal(upstream.count('blob', { method: 'HEAD' }), 1);
    upstream.forget();
    await blob('acme/other');
    assert.equal(upstream.calls.length, 0);
  });

  test('is confirmed anew after a day; an outage opens nothing, and takes nothing away', async () => {
    await blob('acme/private');
    mirror.clock.advance(dayMs + 1);
    upstream.forget();
    assert.equal((await blob('acme/private')).status, 200);
    assert.equal(upstream.count('blob', { method: 'HEAD' }), 1);
    mirror.clock.advance(dayMs + 1);
    await upstream.stop();
    assert.equal((await blob('acme/private')).status, 200);
    assert.equal((await blob('evil/repo')).status, 503);
  });

  test('is lost when the upstream says no', async () => {
    await manifest('acme/private');
    mirror.clock.advance(dayMs + 1);
    upstream.script('manifest', (_call, _req, res) => void res.writeHead(404).end());
    assert.equal((await manifest('acme/private')).status, 404);
    await upstream.stop();
    mirror.clock.advance(60_000);
    assert.equal((await manifest('acme/private')).status, 503);
  });
});

test('content that came anonymously is public within its registry', async (t) => {
  const image = imageOf([randomBlob(100_000)]);
  const upstream = await Upstream.start({ auth: 'bearer' });
  upstream.addImage('library/a', image, '1');
  const mirror = await TestMirror.start({ upstream: upstream.url });
  t.after(() => Promise.all([mirror.close(), upstream.stop()]));
  const path = `blobs/${image.layers[0]!.digest}`;
  assert.equal((await mirror.get(`/v2/library/a/${path}`)).headers['x-cache'], 'miss');
  upstream.forget();
  assert.equal((await mirror.get(`/v2/library/b/${path}`)).headers['x-cache'], 'hit');
  await mirror.restart();
  assert.equal((await mirror.get(`/v2/library/c/${path}`)).headers['x-cache'], 'hit');
  assert.equal(upstream.calls.length, 0);
});
