import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { imageOf, indexOf, largeBlob, type Blob, type Image } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const MB = 1_000_000;

describe('pins', () => {
  let upstream: Upstream;
  let mirror: TestMirror;

  beforeEach(async () => {
    upstream = await Upstream.start();
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  async function start(pins: string[], maxBytes = 20 * MB): Promise<void> {
    mirror = await TestMirror.start({ upstream: upstream.url, config: { store: { maxBytes, pins } } });
  }

  function add(repo: string, tag: string, layers = [largeBlob(2 * MB)]): Image {
    const image = imageOf(layers);
    upstream.addImage(repo, image, tag);
    return image;
  }

  async function pull(repo: string, reference: string, { config, layers }: Image): Promise<void> {
    await mirror.get(`/v2/${repo}/manifests/${reference}`);
    for (const { digest } of [config, ...layers]) await mirror.get(`/v2/${repo}/blobs/${digest}`);
    await mirror.fillsEnded();
  }

  async function crawl(): Promise<void> {
    for (let i = 0; i < 20; i++) await pull('library/other', `t${i}`, add('library/other', `t${i}`));
  }

  const isHeld = async ({ digest }: Blob): Promise<boolean> =>
    (await mirror.files('blobs')).some(({ path }) => path.endsWith(digest.slice(7)));
  const areHeld = async (image: Image): Promise<boolean> =>
    (await Promise.all([image.manifest, image.config, ...image.layers].map(isHeld))).every(Boolean);

  test('an image that is pinned stays with all that it reaches, over a restart too', async () => {
    await start(['docker.io/library/x:1*']);
    const pinned = add('library/x', '1.2');
    const other = add('library/x', '2');
    await pull('library/x', '1.2', pinned);
    await pull('library/x', '2', other);
    await crawl();
    assert.ok(await areHeld(pinned));
    assert.ok(!(await isHeld(other.layers[0]!)));
    await mirror.restart();
    await crawl();
    assert.ok(await areHeld(pinned));
  });

  test('of an index the platforms that were asked for, and the signature; by digest where no tag is named', async () => {
    await start(['docker.io/acme/**']);
    const [amd, arm] = [imageOf([largeBlob(2 * MB)]), imageOf([largeBlob(2 * MB)])];
    for (const image of [amd, arm]) upstream.addImage('acme/a/b', image);
    const index = indexOf([amd, arm]);
    upstream.addManifest('acme/a/b', index, '1');
    const signature = add('acme/a/b', `sha256-${index.digest.slice(7)}.sig`);
    await mirror.get('/v2/acme/a/b/manifests/1');
    await pull('acme/a/b', amd.manifest.digest, amd);
    await pull('acme/a/b', `sha256-${index.digest.slice(7)}.sig`, signature);
    const alone = add('acme/c', 'x');
    await pull('acme/c', alone.manifest.digest, alone);
    await crawl();
    assert.ok(await isHeld(index));
    for (const image of [amd, signature, alone]) assert.ok(await areHeld(image));
    assert.ok(!(await isHeld(arm.manifest)));
  });

  test('what a tag pointed to before is not pinned any more', async () => {
    await start(['docker.io/library/x:1']);
    const before = add('library/x', '1');
    await pull('library/x', '1', before);
    const now = add('library/x', '1');
    mirror.clock.advance(10 * 60_000);
    await pull('library/x', '1', now);
    const pinned = (): Promise<number> => mirror.metric('layercache_store_pinned_bytes');
    await until(async () => (await pinned()) > 2 * MB && (await pinned()) < 3 * MB, 'one image is pinned');
    await crawl();
    assert.ok(await areHeld(now));
    assert.ok(!(await isHeld(before.layers[0]!)));
  });

  test('pins that do not fit are refused with figures', async () => {
    await start(['docker.io/library/x:*']);
    for (const tag of ['1', '2', '3']) await pull('library/x', tag, add('library/x', tag));
    await mirror.stop();
    mirror.reconfigure({ config: { store: { maxBytes: 5 * MB, pins: ['docker.io/library/x:*'] } } });
    await assert.rejects(
      mirror.start(),
      /store\.pins: pinned images take 6\.0 MB, store\.maxBytes is 5\.0 MB/,
    );
  });

  test('pins and the cap change while it runs', async () => {
    await start([]);
    const held = [];
    for (const tag of ['1', '2', '3', '4']) {
      const image = add('library/x', tag);
      await pull('library/x', tag, image);
      held.push(image);
    }
    const config = (store: object) => ({ config: { store: { minFreeBytes: 'off', ...store } } });
    const pinned = () => mirror.metric('layercache_store_pinned_bytes');
    await mirror.reload(config({ maxBytes: 20 * MB, pins: ['docker.io/library/x:1'] }));
    await until(async () => (await pinned()) > 1.9 * MB, 'the pin counts');
    const before = await pinned();

    await mirror.reload(config({ maxBytes: 5 * MB, pins: ['docker.io/library/x:1'] }));
    await until(async () => (await mirror.metric('layercache_store_bytes')) <= 5 * MB, 'room was made');
    assert.equal(await mirror.metric('layercache_store_limit_bytes'), 5 * MB);
    assert.equal(await pinned(), before);
    assert.equal(
      (await mirror.get(`/v2/library/x/blobs/${held[0]!.layers[0]!.digest}`)).headers['x-cache'],
      'hit',
    );

    await assert.rejects(
      mirror.reload({
        config: {
          deny: ['docker.io/**'],
          ...config({ maxBytes: 1 * MB, pins: ['docker.io/library/x:1'] }).config,
        },
      }),
      /store\.pins: pinned images take 2\.0 MB, store\.maxBytes is 1\.0 MB/,
    );
    assert.equal(await mirror.metric('layercache_store_limit_bytes'), 5 * MB, 'nothing has changed');
    assert.equal((await mirror.get('/v2/library/x/manifests/1')).status, 200);
    assert.ok(await areHeld(held[0]!));
    await mirror.reload(config({ maxBytes: 20 * MB, pins: [] }));
    await until(async () => (await pinned()) === 0, 'the pin is gone');
  });
});
