import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { Authority } from '../support/certificates.ts';
import { sameBytes } from '../support/http.ts';
import { imageOf, randomBlob, type Blob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const login = { username: 'me', password: 'pw' };
const dayMs = 24 * 60 * 60 * 1000;

/** The private repo's layer stops half-way until it may go on. */
function giveHalf(upstream: Upstream, layer: Blob, go: Promise<unknown>): void {
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
}

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
    giveHalf(upstream, layer, go);
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

  test('two repos that ask at once for what nobody has: each gets its own answer', async () => {
    const path = (repo: string) => `/v2/${repo}/blobs/${layer.digest}`;
    for (const order of [
      ['acme/private', 'evil/repo'],
      ['evil/repo', 'acme/private'],
    ]) {
      const replies = await Promise.all(order.map((repo) => mirror.get(path(repo))));
      const expected = order.map((repo) => (repo === 'evil/repo' ? 404 : 200));
      assert.deepEqual(
        replies.map(({ status }) => status),
        expected,
      );
      await mirror.close();
      mirror = await TestMirror.start({ upstream: upstream.url, upstreamConfig: { accounts: [login] } });
    }
  });

  test('repos that wait for one that is refused do not get what the next one gets', async () => {
    const { promise: go, resolve: open } = Promise.withResolvers<undefined>();
    upstream.script('blob', async (_call, _req, _res, next) => {
      await go;
      next();
    });
    const first = blob('evil/one');
    await until(() => upstream.count('blob') === 1, 'the first has asked');
    const waiting = ['acme/private', 'evil/two', 'evil/three'].map((repo) => blob(repo));
    open(undefined);
    assert.equal((await first).status, 404);
    assert.deepEqual(
      (await Promise.all(waiting)).map(({ status }) => status),
      [200, 404, 404],
    );
  });

  test('is not confirmed by a web page, nor by a blob of another size', async () => {
    await blob('acme/private');
    for (const headers of [
      { 'content-type': 'text/html', 'content-length': 200_000 },
      { 'content-length': 6 },
    ]) {
      upstream.script('blob', (_call, _req, res) => void res.writeHead(200, headers).end());
      assert.equal((await blob('evil/repo')).status, 502);
      upstream.behave();
    }
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

test('content of an account is nobody else’s, across upstreams too, also while it arrives', async (t) => {
  const image = imageOf([randomBlob(300_000)]);
  const layer = image.layers[0]!;
  const login = { username: 'u', password: 'p' };
  const [owner, other] = await Promise.all([Upstream.start({ auth: 'bearer', login }), Upstream.start()]);
  owner.addImage('acme/private', image, '1');
  other.addImage('org/app', imageOf([randomBlob(10)]), '1');
  const mirror = await TestMirror.start({
    upstream: other.url,
    upstreams: [{ registry: 'private.example', url: owner.url, accounts: [login] }],
  });
  t.after(() => Promise.all([mirror.close(), owner.stop(), other.stop()]));
  const elsewhere = async (): Promise<void> => {
    for (const repo of ['org/app', 'acme/private', 'private.example/evil/app'])
      for (const path of [`blobs/${layer.digest}`, `manifests/${image.manifest.digest}`])
        for (const method of ['GET', 'HEAD'])
          assert.equal(
            (await mirror.get(`/v2/${repo}/${path}`, { method })).status,
            404,
            `${method} ${repo}`,
          );
    mirror.clock.advance(10_001);
  };
  const { promise: go, resolve: open } = Promise.withResolvers<undefined>();
  giveHalf(owner, layer, go);
  const started = Promise.withResolvers<undefined>();
  const pull = mirror.get(`/v2/private.example/acme/private/blobs/${layer.digest}`, {
    onHeaders: () => started.resolve(undefined),
  });
  assert.equal((await mirror.get('/v2/private.example/acme/private/manifests/1')).status, 200);
  await started.promise;
  await elsewhere();
  open(undefined);
  sameBytes((await pull).body, layer.bytes);
  await elsewhere();
  await Promise.all([owner.stop(), other.stop()]);
  assert.equal((await mirror.get(`/v2/org/app/blobs/${layer.digest}`)).status, 503);
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

test('an upstream that knows us without a login gives nothing to everybody', async (t) => {
  const image = imageOf([randomBlob(100_000)]);
  const upstream = await Upstream.start();
  upstream.addImage('acme/a', image, '1');
  const mirror = await TestMirror.start({ upstream: upstream.url });
  t.after(() => Promise.all([mirror.close(), upstream.stop()]));
  const paths = [`blobs/${image.layers[0]!.digest}`, `manifests/${image.manifest.digest}`];
  const statuses = async (repo: string): Promise<number[]> => {
    const replies = await Promise.all(paths.map((path) => mirror.get(`/v2/${repo}/${path}`)));
    mirror.clock.advance(10_001);
    return replies.map(({ status }) => status);
  };
  assert.deepEqual(await statuses('acme/a'), [200, 200]);
  await until(
    async () => (await mirror.get(`/v2/acme/a/${paths[0]!}`)).headers['x-cache'] === 'hit',
    'stored',
  );
  assert.deepEqual(await statuses('acme/b'), [200, 200], 'it is public');
  await mirror.reload({ upstreamConfig: { private: true } });
  assert.deepEqual(await statuses('acme/b'), [404, 404], 'what came before is proven anew');
  assert.deepEqual(await statuses('acme/a'), [200, 200]);
  await mirror.restart();
  assert.deepEqual(await statuses('acme/c'), [404, 404]);
  upstream.forget();
  assert.deepEqual(await statuses('acme/a'), [200, 200]);
  assert.equal(upstream.calls.length, 0, 'its own link is fresh');
});

test('so does one that asks for a client certificate', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'layercache-mtls-'));
  const pair = await (await Authority.create(directory)).sign('mirror');
  const image = imageOf([randomBlob(100_000)]);
  const upstream = await Upstream.start();
  upstream.addImage('acme/a', image, '1');
  const mirror = await TestMirror.start({ upstream: upstream.url, upstreamConfig: pair });
  t.after(async () => {
    await Promise.all([mirror.close(), upstream.stop()]);
    await rm(directory, { recursive: true });
  });
  const path = `blobs/${image.layers[0]!.digest}`;
  assert.equal((await mirror.get(`/v2/acme/a/${path}`)).status, 200);
  assert.equal((await mirror.get(`/v2/acme/b/${path}`)).status, 404);
});
