import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { digestOf } from '../../src/oci/digest.ts';
import { errorOf, sameBytes } from '../support/http.ts';
import { imageOf, manifestOf, ociManifest, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const minute = 60_000;

describe('a mirror of a mirror', () => {
  let upstream: Upstream;
  let inner: TestMirror;
  let outer: TestMirror;
  const image = imageOf([randomBlob(1000)]);

  async function start(options: Parameters<typeof Upstream.start>[0] = {}): Promise<void> {
    upstream = await Upstream.start(options);
    upstream.addImage('library/x', image, '1');
    inner = await TestMirror.start({ upstream: upstream.url });
    outer = await TestMirror.start({ upstream: inner.url });
  }
  afterEach(async () => {
    await outer.close();
    await inner.close();
    await upstream.stop();
  });
  const advance = (ms: number): void => {
    for (const { clock } of [inner, outer]) clock.advance(ms);
  };
  const pull = async () => {
    const reply = await outer.get('/v2/x/manifests/1');
    for (const { digest } of [image.config, ...image.layers])
      await outer.get(`/v2/library/x/blobs/${digest}`);
    return reply;
  };

  test('Age is that of the registry’s own word, and staleness is handed on', async () => {
    await start();
    assert.equal((await pull()).headers.age, '0');
    await until(async () => (await inner.files('blobs')).length === 3, 'the inner one has it');
    advance(4 * minute);
    assert.equal((await outer.get('/v2/x/manifests/1')).headers.age, '240');
    await upstream.stop();
    advance(6 * minute);
    const first = await outer.get('/v2/x/manifests/1');
    sameBytes(first.body, image.manifest.bytes);
    assert.equal(first.headers.age, '600');
    assert.equal(first.headers['x-cache-reason'], 'upstream-stale');
    advance(minute);
    const calls = (await inner.metrics()).length;
    const second = await outer.get('/v2/x/manifests/1');
    assert.equal(second.headers['x-cache'], 'hit', 'the time to live counts from our own question');
    assert.equal(second.headers.age, '660');
    assert.equal(second.headers['x-cache-reason'], 'upstream-stale');
    assert.ok(calls > 0);
    await outer.restart();
    assert.equal((await outer.get('/v2/x/manifests/1')).headers.age, '660', 'also after a restart');
    await upstream.resume();
    advance(10 * minute);
    await until(async () => {
      const reply = await outer.get('/v2/x/manifests/1');
      advance(6 * minute);
      return reply.headers.age === '0' && reply.headers['x-cache-reason'] === undefined;
    }, 'it is fresh again');
  });

  test('pulls that are left are handed on, where one was spent or was asked for', async () => {
    await start({ auth: 'bearer', pulls: 10 });
    const reply = await outer.get('/v2/x/manifests/1');
    assert.equal(reply.status, 200);
    assert.equal(reply.headers['ratelimit-limit'], '10;w=21600');
    assert.equal(reply.headers['ratelimit-remaining'], '9;w=21600');
    assert.equal((await outer.head('/v2/x/manifests/1')).headers['ratelimit-remaining'], '9;w=21600');
    await until(
      async () => (await outer.get('/v2/x/manifests/1')).headers['x-cache'] === 'hit',
      'it is held',
    );
    const hit = await outer.get('/v2/x/manifests/1');
    assert.equal(hit.headers['ratelimit-limit'], undefined, 'a hit costs none');
    assert.equal(
      await outer.metric('layercache_quota_remaining{registry="docker.io",account="anonymous"}'),
      9,
    );
  });

  test('a refusal without figures is tried again after a minute, whatever Retry-After says', async () => {
    await start();
    upstream.script(
      'manifest',
      (_call, _req, res) =>
        void res
          .writeHead(429, { 'retry-after': '21600', 'content-type': 'application/json' })
          .end('{"errors":[{"code":"TOOMANYREQUESTS"}]}'),
      { times: 1, match: ({ method }) => method === 'GET' },
    );
    const refused = await outer.get('/v2/x/manifests/1');
    assert.equal(refused.status, 429);
    assert.ok(Number(refused.headers['retry-after']) <= 60);
    for (let waited = 0; waited < 3; waited++) advance(minute);
    assert.equal((await outer.get('/v2/x/manifests/1')).status, 200);
  });

  test('only pseudonyms of mirrors go upstream, and a ring is told at once', async () => {
    await start();
    const headers = { via: '1.1 evil.example, 1.0 layercache-0123456789abcdef (x), 1.1 layercache-short' };
    assert.equal((await outer.get('/v2/x/manifests/1', { headers })).status, 200);
    for (const { headers: sent } of upstream.calls)
      assert.match(sent.via ?? '', /^1\.1 (layercache-[0-9a-f]{16})(, 1\.1 layercache-[0-9a-f]{16}){1,2}$/);
    assert.ok(upstream.calls.some(({ headers: sent }) => sent.via?.includes('0123456789abcdef')));
    // It is its own upstream, directly and by way of another.
    await inner.reload({ upstream: inner.url });
    const before = performance.now();
    const direct = await inner.get('/v2/x/manifests/2');
    assert.equal(direct.status, 508);
    assert.match(errorOf(direct).message, /(lead|loop)s? back to/);
    await inner.reload({ upstream: outer.url });
    for (const path of ['manifests/3', `blobs/${randomBlob(9).digest}`, 'tags/list'])
      assert.equal((await outer.get(`/v2/x/${path}`)).status, 508, path);
    assert.ok(performance.now() - before < 5000);
    await inner.reload({ upstream: upstream.url });
    assert.equal((await inner.get('/v2/x/manifests/1')).status, 200, 'nobody is held to be down for it');
  });
});

describe('what belongs to an image', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const image = imageOf([randomBlob(1000)]);

  beforeEach(async () => {
    upstream = await Upstream.start({ referrers: true });
    upstream.addImage('library/x', image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url });
    await mirror.get('/v2/x/manifests/1');
    await until(
      async () => (await mirror.get('/v2/x/manifests/1')).headers['x-cache'] === 'hit',
      'it is held',
    );
  });
  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const signature = (): ReturnType<typeof manifestOf> =>
    manifestOf(
      {
        schemaVersion: 2,
        mediaType: ociManifest,
        artifactType: 'application/x.sig',
        config: { mediaType: 'application/x', digest: image.config.digest, size: 500 },
        layers: [],
        subject: { mediaType: ociManifest, digest: image.manifest.digest, size: image.manifest.bytes.length },
      },
      ociManifest,
    );

  test('an empty list lives no longer than any other absence', async () => {
    const path = `/v2/library/x/referrers/${image.manifest.digest}`;
    const count = async (): Promise<number> =>
      (JSON.parse((await mirror.get(path)).body.toString()) as { manifests: [] }).manifests.length;
    assert.equal(await count(), 0);
    upstream.addManifest('library/x', signature());
    assert.equal(await count(), 0);
    mirror.clock.advance(10_001);
    assert.equal(await count(), 1, 'what was pushed is seen at once');
    upstream.forget();
    mirror.clock.advance(30_000);
    assert.equal(await count(), 1);
    assert.equal(upstream.count('referrers'), 0, 'one with something in it as long as its tag');
  });

  test('an artifact of which nobody asks for the config is served in an outage; one that has lost it is not', async () => {
    const artifact = imageOf([randomBlob(300)]);
    const tag = `${image.manifest.digest.replace(':', '-')}.sig`;
    upstream.addImage('library/x', artifact, tag);
    const pull = async (): Promise<void> => {
      assert.equal((await mirror.get(`/v2/library/x/manifests/${tag}`)).status, 200);
      assert.equal((await mirror.get(`/v2/library/x/blobs/${artifact.layers[0]!.digest}`)).status, 200);
    };
    await pull();
    await until(async () => (await mirror.files('blobs')).length === 3, 'it is stored');
    await upstream.stop();
    mirror.clock.advance(minute + 1);
    const stale = await mirror.get(`/v2/library/x/manifests/${tag}`);
    assert.equal(stale.headers['x-cache'], 'stale', stale.body.toString());
    await upstream.resume();
    const config = `/v2/library/x/blobs/${artifact.config.digest}`;
    assert.equal((await mirror.get(config)).status, 200);
    const fileOfConfig = async () =>
      (await mirror.files('blobs')).find(({ path }) => path.endsWith(artifact.config.digest.slice(7)));
    await until(async () => (await fileOfConfig()) !== undefined, 'the config is stored');
    const file = (await fileOfConfig())!;
    await mirror.restart();
    await rm(join(mirror.dataDirectory, file.path));
    await upstream.stop();
    assert.equal((await mirror.get(config)).status, 503);
    mirror.clock.advance(minute + 1);
    assert.equal((await mirror.get(`/v2/library/x/manifests/${tag}`)).status, 503);
  });

  test('signatures of sha512 digests are known by the first half of it', async () => {
    const bytes = Buffer.from(image.manifest.bytes.toString() + ' ');
    const digest = digestOf(bytes, 'sha512');
    const subject = { bytes, digest, mediaType: ociManifest };
    upstream.addManifest('library/x', subject, 'big');
    assert.equal((await mirror.get(`/v2/library/x/manifests/${digest}`)).status, 200);
    const tag = `sha512-${createHash('sha512').update(bytes).digest('hex').slice(0, 64)}`;
    upstream.forget();
    assert.equal((await mirror.get(`/v2/library/x/manifests/${tag}`)).status, 404);
    await upstream.stop();
    mirror.clock.advance(minute);
    assert.equal(
      (await mirror.get(`/v2/library/x/manifests/${tag}`)).status,
      404,
      'there was none: in an outage too',
    );
    await upstream.resume();
    mirror.clock.advance(minute);
    upstream.addManifest('library/x', signature(), tag);
    await until(
      async () => (await mirror.get(`/v2/library/x/manifests/${tag}`)).status === 200,
      'it is there',
    );
    mirror.clock.advance(minute + 1);
    upstream.forget();
    await mirror.get(`/v2/library/x/manifests/${tag}`);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 1, 'its time to live is a minute');
  });
});
