import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { errorOf, sameBytes } from '../support/http.ts';
import { imageOf, indexOf, manifestOf, ociIndex, ociManifest, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

describe('pulls', () => {
  const image = imageOf([randomBlob(300_000), randomBlob(1_000)]);
  const other = imageOf([randomBlob(2_000)]);
  const index = indexOf([image, other]);
  let upstream: Upstream;
  let mirror: TestMirror;

  beforeEach(async () => {
    upstream = await Upstream.start({ auth: 'bearer', cdn: true });
    upstream.addImage('library/alpine', image);
    upstream.addImage('library/alpine', other);
    upstream.addManifest('library/alpine', index, 'latest');
    mirror = await TestMirror.start({ upstream: upstream.url });
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  /** As dockerd does it. */
  async function pull(tag = 'latest'): Promise<string[]> {
    const results: string[] = [];
    const get = async (path: string, method = 'GET'): Promise<Buffer> => {
      const reply = await mirror.get(path, { method });
      assert.equal(reply.status, 200, `${method} ${path}: ${reply.body.toString()}`);
      results.push(String(reply.headers['x-cache']));
      return reply.body;
    };
    await get(`/v2/library/alpine/manifests/${tag}`, 'HEAD');
    sameBytes(await get(`/v2/library/alpine/manifests/${index.digest}`), index.bytes);
    assert.deepEqual(
      await get(`/v2/library/alpine/manifests/${image.manifest.digest}`),
      image.manifest.bytes,
    );
    for (const blob of [image.config, ...image.layers]) {
      sameBytes(await get(`/v2/library/alpine/blobs/${blob.digest}`), blob.bytes);
    }
    return results;
  }

  test('cold: one token, one HEAD, two manifest GETs, each layer once', async () => {
    // The last layer was fetched ahead, when the one before it was asked for.
    assert.deepEqual(new Set((await pull()).slice(0, -1)), new Set(['miss']));
    assert.equal(upstream.count('token'), 1);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 1);
    assert.equal(upstream.count('manifest', { method: 'GET' }), 2);
    assert.equal(upstream.count('cdn'), 3);
    assert.equal(upstream.blobBytes, 300_000 + 1_000 + 500);
  });

  test('warm within the TTL: no upstream call at all', async () => {
    await pull();
    upstream.forget();
    assert.deepEqual(new Set(await pull()), new Set(['hit']));
    assert.equal(upstream.calls.length, 0);
  });

  test('past the TTL: one HEAD for 20 clients at once', async () => {
    await pull();
    upstream.forget();
    mirror.clock.advance(6 * 60_000);
    const replies = await Promise.all(
      Array.from({ length: 20 }, () => mirror.get('/v2/library/alpine/manifests/latest')),
    );
    // Whoever comes after the answer finds the tag fresh.
    const results = new Set(replies.map(({ headers }) => headers['x-cache']));
    assert.ok(results.has('revalidated') && results.isSubsetOf(new Set(['revalidated', 'hit'])));
    assert.equal(upstream.count('manifest'), 1);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 1);
  });

  test('100 clients on one cold tag: one HEAD, one GET, one token', async () => {
    const replies = await Promise.all(
      Array.from({ length: 100 }, () => mirror.get('/v2/library/alpine/manifests/latest')),
    );
    assert.ok(replies.every(({ status, body }) => status === 200 && body.equals(index.bytes)));
    assert.equal(upstream.count('token'), 1);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 1);
    assert.equal(upstream.count('manifest', { method: 'GET' }), 1);
    const results = replies.map(({ headers }) => headers['x-cache']);
    assert.equal(results.filter((result) => result === 'miss').length, 1);
    assert.ok(new Set(results).isSubsetOf(new Set(['miss', 'joined', 'hit'])));
  });

  test('a HEAD by tag spends no pull, however often', async () => {
    for (const expected of ['miss', 'hit']) {
      const reply = await mirror.head('/v2/library/alpine/manifests/latest');
      assert.equal(reply.headers['x-cache'], expected);
      assert.equal(reply.headers['content-length'], String(index.bytes.length));
      assert.equal(reply.headers['docker-content-digest'], index.digest);
      assert.equal(reply.headers['content-type'], ociIndex);
    }
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 1);
    assert.equal(upstream.count('manifest', { method: 'GET' }), 0);
  });

  test('a bare official name means library/', async () => {
    await pull();
    upstream.forget();
    const reply = await mirror.get('/v2/alpine/manifests/latest');
    assert.equal(reply.headers['x-cache'], 'hit');
    assert.equal(upstream.calls.length, 0);
  });

  test('a tag that has moved: one HEAD and one GET by digest, the old digest stays', async () => {
    await pull();
    upstream.forget();
    mirror.clock.advance(6 * 60_000);
    upstream.addManifest('library/alpine', other.manifest, 'latest');
    const reply = await mirror.get('/v2/library/alpine/manifests/latest');
    sameBytes(reply.body, other.manifest.bytes);
    assert.equal(reply.headers['docker-content-digest'], other.manifest.digest);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 1);
    assert.equal(upstream.count('manifest', { method: 'GET', reference: other.manifest.digest }), 1);
    assert.equal(
      (await mirror.get(`/v2/library/alpine/manifests/${index.digest}`)).headers['x-cache'],
      'hit',
    );
  });

  test('a tag that is gone upstream is 404, and its digest still served', async () => {
    await pull();
    mirror.clock.advance(6 * 60_000);
    upstream.removeTag('library/alpine', 'latest');
    const reply = await mirror.get('/v2/library/alpine/manifests/latest');
    assert.equal(reply.status, 404);
    assert.equal(errorOf(reply).code, 'MANIFEST_UNKNOWN');
    assert.equal((await mirror.get(`/v2/library/alpine/manifests/${index.digest}`)).status, 200);
  });

  test('a missing tag is looked for once in negativeTtl, and found when it comes', async () => {
    const ask = () => mirror.get('/v2/library/alpine/manifests/soon');
    const replies = await Promise.all(Array.from({ length: 50 }, ask));
    assert.ok(replies.every(({ status }) => status === 404));
    assert.equal(upstream.count('manifest'), 1);
    upstream.addManifest('library/alpine', index, 'soon');
    assert.equal((await ask()).status, 404);
    mirror.clock.advance(11_000);
    assert.equal((await ask()).status, 200);
  });

  test('a tag is stale while the upstream is down, also after a restart, if its image is whole', async () => {
    await pull();
    await upstream.stop();
    await mirror.restart();
    mirror.clock.advance(6 * 60_000);
    const reply = await mirror.get('/v2/library/alpine/manifests/latest');
    assert.equal(reply.status, 200);
    assert.equal(reply.headers['x-cache'], 'stale');
    assert.equal(reply.headers['x-cache-reason'], 'upstream-down');
    assert.match(String(reply.headers['warning']), /^299 - "[^"]+"$/);
    assert.ok(Number(reply.headers['age']) >= 360);
    for (const { digest, bytes } of [image.config, ...image.layers]) {
      sameBytes((await mirror.get(`/v2/library/alpine/blobs/${digest}`)).body, bytes);
    }
  });

  test('what is not whole, or not held, is 503 while the upstream is down', async () => {
    await mirror.get('/v2/library/alpine/manifests/latest');
    await mirror.get(`/v2/library/alpine/manifests/${image.manifest.digest}`);
    await upstream.stop();
    mirror.clock.advance(6 * 60_000);
    for (const path of ['manifests/latest', 'manifests/other', `blobs/${image.config.digest}`]) {
      const reply = await mirror.get(`/v2/library/alpine/${path}`);
      assert.equal(reply.status, 503, path);
      assert.equal(errorOf(reply).code, 'UNAVAILABLE');
      assert.equal(reply.headers['x-cache'], undefined);
    }
  });

  test('a foreign layer is never fetched from its urls, and not missed when the upstream is down', async () => {
    const urls = [`${upstream.cdnUrl}/elsewhere`];
    const foreign = randomBlob(10);
    const manifest = manifestOf(
      {
        schemaVersion: 2,
        config: { digest: image.config.digest, size: image.config.bytes.length },
        layers: [{ digest: foreign.digest, size: 10, urls }],
      },
      ociManifest,
    );
    upstream.addManifest('library/alpine', manifest, 'foreign');
    assert.equal((await mirror.get('/v2/library/alpine/manifests/foreign')).status, 200);
    assert.equal((await mirror.get(`/v2/library/alpine/blobs/${image.config.digest}`)).status, 200);
    assert.equal((await mirror.get(`/v2/library/alpine/blobs/${foreign.digest}`)).status, 404);
    assert.ok(upstream.calls.every(({ url }) => !url.includes('elsewhere')));
    await until(async () => (await mirror.files('blobs')).length === 2, 'all is stored');
    await upstream.stop();
    mirror.clock.advance(6 * 60_000);
    assert.equal((await mirror.get('/v2/library/alpine/manifests/foreign')).headers['x-cache'], 'stale');
  });

  test('a moved tag whose new manifest cannot be had is served as it was', async () => {
    await pull();
    mirror.clock.advance(6 * 60_000);
    upstream.addManifest('library/alpine', other.manifest, 'latest');
    upstream.script(
      'manifest',
      (_call, _req, res) => void res.writeHead(429, { 'retry-after': '30' }).end(),
      {
        match: ({ method }) => method === 'GET',
      },
    );
    const reply = await mirror.get('/v2/library/alpine/manifests/latest');
    assert.equal(reply.headers['x-cache'], 'stale');
    assert.equal(reply.headers['x-cache-reason'], 'upstream-limited');
    sameBytes(reply.body, index.bytes);
  });

  test('429 for what is not held comes with its Retry-After, and nobody asks before that', async () => {
    upstream.script(
      'manifest',
      (_call, _req, res) => void res.writeHead(429, { 'retry-after': '30' }).end(),
      { times: 1 },
    );
    const reply = await mirror.get('/v2/library/alpine/manifests/latest');
    assert.equal(reply.status, 429);
    assert.equal(errorOf(reply).code, 'TOOMANYREQUESTS');
    assert.equal(reply.headers['retry-after'], '30');
    mirror.clock.advance(29_000);
    const calls = upstream.calls.length;
    assert.equal((await mirror.get('/v2/library/alpine/manifests/latest')).headers['retry-after'], '1');
    assert.equal(upstream.calls.length, calls);
    mirror.clock.advance(1_000);
    assert.equal((await mirror.get('/v2/library/alpine/manifests/latest')).status, 200);
  });
});

test('a ttl of 0 asks every time', async () => {
  const image = imageOf([]);
  const upstream = await Upstream.start();
  upstream.addImage('library/x', image, '1');
  const mirror = await TestMirror.start({ upstream: upstream.url, config: { tags: { ttl: 0 } } });
  try {
    for (const expected of ['miss', 'revalidated', 'revalidated']) {
      assert.equal((await mirror.get('/v2/library/x/manifests/1')).headers['x-cache'], expected);
    }
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 3);
    assert.equal(upstream.count('manifest', { method: 'GET' }), 1);
  } finally {
    await mirror.close();
    await upstream.stop();
  }
});
