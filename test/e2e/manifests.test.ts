import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { imageOf, manifestOf, ociIndex, ociManifest, randomBlob, type Manifest } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const odd = 'application/vnd.odd+json';

describe('what a manifest is', () => {
  let first: Upstream;
  let second: Upstream;
  let mirror: TestMirror;

  beforeEach(async () => {
    [first, second] = await Promise.all([Upstream.start(), Upstream.start()]);
    mirror = await TestMirror.start({
      upstream: first.url,
      upstreams: [{ registry: 'second.example', url: second.url }],
      config: { store: { pins: ['docker.io/library/x:1'] } },
    });
  });
  afterEach(async () => {
    await mirror.close();
    await Promise.all([first.stop(), second.stop()]);
  });

  const typeOf = async (path: string, method = 'GET'): Promise<string | undefined> => {
    const reply = await mirror.get(`/v2/${path}`, { method });
    assert.equal(reply.status, 200, `${path}: ${reply.body.toString()}`);
    return reply.headers['content-type'];
  };
  const as = (manifest: Manifest, mediaType: string): Manifest => ({ ...manifest, mediaType });

  test('another registry cannot give a held one another type, or take its parts away', async () => {
    const image = imageOf([randomBlob(200_000)]);
    first.addImage('library/x', image, '1');
    second.addManifest('org/evil', as(image.manifest, odd), '1');
    second.script('manifest', (_call, _req, res) => void res.writeHead(405).end(), {
      match: ({ method }) => method === 'HEAD',
    });
    assert.equal(await typeOf('x/manifests/1'), ociManifest);
    for (const { digest } of [image.config, ...image.layers])
      await mirror.get(`/v2/library/x/blobs/${digest}`);
    const pinned = async (): Promise<number> => mirror.metric('layercache_store_pinned_bytes');
    await until(async () => (await pinned()) > 200_000, 'it is pinned with its layer');
    const before = await pinned();
    for (const reference of ['1', image.manifest.digest])
      assert.equal(await typeOf(`second.example/org/evil/manifests/${reference}`), ociManifest);
    for (let run = 0; run < 2; run++) {
      for (const method of ['GET', 'HEAD'])
        for (const reference of ['1', image.manifest.digest])
          assert.equal(await typeOf(`x/manifests/${reference}`, method), ociManifest);
      await until(async () => (await pinned()) === before, 'the layer is still pinned');
      await mirror.restart();
    }
    await first.stop();
    mirror.clock.advance(60 * 60_000);
    const stale = await mirror.get('/v2/x/manifests/1');
    assert.equal(stale.headers['x-cache'], 'stale', 'it is still whole');
    assert.equal(stale.headers['content-type'], ociManifest);
  });

  test('nor when it comes first', async () => {
    const image = imageOf([randomBlob(1000)]);
    second.addManifest('org/evil', as(image.manifest, odd), '1');
    first.addImage('library/x', image, '1');
    assert.equal(await typeOf('second.example/org/evil/manifests/1'), ociManifest);
    assert.equal(await typeOf('x/manifests/1'), ociManifest);
  });

  test('one that names no type is what each repo’s own upstream says, also after a restart', async () => {
    const image = imageOf([randomBlob(1000)]);
    const body = JSON.parse(image.manifest.bytes.toString()) as { mediaType?: string };
    delete body.mediaType;
    const unnamed = manifestOf(body, ociManifest);
    const docker = 'application/vnd.docker.distribution.manifest.v2+json';
    first.addImage('library/x', { ...image, manifest: unnamed }, '1');
    first.addImage('library/y', { ...image, manifest: as(unnamed, docker) }, '1');
    second.addManifest('org/evil', as(unnamed, odd), '1');
    const expectAll = async (): Promise<void> => {
      for (const method of ['GET', 'HEAD'])
        for (const reference of ['1', unnamed.digest]) {
          assert.equal(await typeOf(`second.example/org/evil/manifests/${reference}`, method), odd);
          assert.equal(await typeOf(`x/manifests/${reference}`, method), ociManifest);
          assert.equal(await typeOf(`library/y/manifests/${reference}`, method), docker);
        }
    };
    await expectAll();
    await mirror.restart();
    first.forget();
    second.forget();
    await expectAll();
    assert.equal(first.calls.length + second.calls.length, 0, 'it is remembered');
  });

  test('parts that are named a thousand times are looked at once', async () => {
    const leaf = imageOf([randomBlob(100)]).manifest;
    const nest = (inner: Manifest): Manifest =>
      manifestOf(
        {
          schemaVersion: 2,
          mediaType: ociIndex,
          manifests: Array.from({ length: 1000 }, () => ({
            mediaType: inner.mediaType,
            digest: inner.digest,
            size: inner.bytes.length,
          })),
        },
        ociIndex,
      );
    const inner = nest(leaf);
    const middle = nest(inner);
    const outer = nest(middle);
    for (const manifest of [leaf, inner, middle, outer]) first.addManifest('library/x', manifest);
    first.addManifest('library/x', outer, 'deep');
    for (const { digest } of [leaf, inner, middle]) await mirror.get(`/v2/library/x/manifests/${digest}`);
    await mirror.get('/v2/x/manifests/deep');
    await first.stop();
    mirror.clock.advance(60 * 60_000);
    const before = performance.now();
    const stale = await mirror.get('/v2/x/manifests/deep');
    assert.equal(stale.status, 503, 'its layer was never fetched');
    assert.ok(performance.now() - before < 5000);
  });
});
