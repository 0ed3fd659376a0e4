import assert from 'node:assert/strict';
import { mkdir, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sameBytes, type Reply } from '../support/http.ts';
import { imageOf, largeBlob, manifestOf, randomBlob, type Blob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const MB = 1_000_000;

describe('store', () => {
  let upstream: Upstream;
  let mirror: TestMirror;

  beforeEach(async () => {
    upstream = await Upstream.start();
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  async function start(store: object): Promise<void> {
    mirror = await TestMirror.start({ upstream: upstream.url, config: { store } });
  }

  function add(size: number): Blob {
    const blob = largeBlob(size);
    upstream.addBlob('library/x', blob);
    return blob;
  }

  const get = (blob: Blob): Promise<Reply> => mirror.get(`/v2/library/x/blobs/${blob.digest}`);
  const stored = (count: number) => async () => (await mirror.files('blobs')).length === count;
  const pathOf = ({ digest }: Blob) =>
    join(mirror.dataDirectory, 'blobs/sha256', digest.slice(7, 9), digest.slice(7));

  test('a catalog that is deleted while it is in use is told of, and written anew', async () => {
    await start({});
    const blobs = [add(100_000), add(200_000)];
    for (const blob of blobs) await get(blob);
    await until(stored(2), 'they are stored');
    for (const ending of ['', '-wal', '-shm'])
      await rm(join(mirror.dataDirectory, `catalog.db${ending}`), { force: true });
    await until(() => mirror.log.includes('the catalog was deleted while it was in use'), 'it is told');
    await until(
      () =>
        stat(join(mirror.dataDirectory, 'catalog.db')).then(
          () => true,
          () => false,
        ),
      'it is there again',
    );
    const more = add(300_000);
    blobs.push(more);
    await get(more);
    await until(stored(3), 'it goes on');
    upstream.forget();
    await mirror.restart();
    for (const blob of blobs) assert.equal((await get(blob)).headers['x-cache'], 'hit');
    assert.equal(upstream.calls.length, 0);
  });

  test('a lock that is garbage is named, with what to do', async () => {
    await start({});
    await mirror.stop();
    await writeFile(join(mirror.dataDirectory, 'lock.db'), 'x'.repeat(8192));
    await assert.rejects(mirror.start(), /lock\.db is not a lock of layercache: delete it/);
    await rm(join(mirror.dataDirectory, 'lock.db'));
    await mirror.start();
  });

  test('the cap holds at every moment, unfinished fills included; what was used least recently goes', async () => {
    await start({ maxBytes: 10 * MB });
    const blobs = Array.from({ length: 8 }, () => add(2 * MB));
    let most = 0;
    for (const [i, blob] of blobs.entries()) {
      const reading = get(blob);
      await until(async () => {
        const files = [...(await mirror.files('blobs')), ...(await mirror.files('ingest'))];
        most = Math.max(
          most,
          files.reduce((sum, { size }) => sum + size, 0),
        );
        return (await mirror.metric('layercache_fills_active')) === 0;
      }, 'the fill is over');
      sameBytes((await reading).body, blob.bytes);
      mirror.clock.advance(1000);
      // The first is asked for again and again.
      if (i > 0) assert.equal((await get(blobs[0]!)).headers['x-cache'], 'hit');
      mirror.clock.advance(1000);
    }
    assert.ok(most <= 10 * MB, `${most} bytes`);
    assert.equal((await mirror.files('blobs')).length, 4);
    assert.equal(await mirror.metric('layercache_evictions_total{reason="max-bytes"}'), 4);
    assert.ok((await mirror.metric('layercache_store_bytes')) <= 10 * MB);
    assert.equal((await get(blobs[7]!)).headers['x-cache'], 'hit');
    assert.equal((await get(blobs[1]!)).headers['x-cache'], 'miss');
  });

  test('what is being read is not put out, and its reader finishes', async () => {
    await start({ maxBytes: 25 * MB });
    const [read, other, third] = [add(12 * MB), add(10 * MB), add(10 * MB)];
    await get(read);
    await until(stored(1), 'it is stored');
    const { promise: go, resolve: open } = Promise.withResolvers<undefined>();
    const started = Promise.withResolvers<undefined>();
    const reading = mirror.get(`/v2/library/x/blobs/${read.digest}`, {
      onHeaders: () => started.resolve(undefined),
      onData: () => go.then(() => undefined),
    });
    await started.promise;
    sameBytes((await get(other)).body, other.bytes);
    await until(stored(2), 'the second is stored');
    sameBytes((await get(third)).body, third.bytes);
    await until(
      async () =>
        (await mirror.get(`/v2/library/x/blobs/${third.digest}`, { method: 'HEAD' })).headers['x-cache'] ===
        'hit',
      'the third has taken the place of the second',
    );
    open(undefined);
    sameBytes((await reading).body, read.bytes);
    assert.equal((await get(read)).headers['x-cache'], 'hit');
  });

  test('what is larger than the cap passes through, to several at once, verified, and is not kept', async () => {
    await start({ maxBytes: 5 * MB });
    const blob = add(8 * MB);
    for (const reply of await Promise.all([get(blob), get(blob), get(blob)]))
      sameBytes(reply.body, blob.bytes);
    assert.equal(upstream.count('blob'), 3);
    const range = await mirror.get(`/v2/library/x/blobs/${blob.digest}`, {
      headers: { range: 'bytes=7000000-' },
    });
    assert.equal(range.status, 206);
    sameBytes(range.body, blob.bytes.subarray(7 * MB));
    assert.deepEqual([...(await mirror.files('blobs')), ...(await mirror.files('ingest'))], []);
    upstream.addBlob('library/x', { digest: blob.digest, bytes: largeBlob(8 * MB).bytes });
    const corrupt = await get(blob);
    assert.ok(corrupt.broken && corrupt.body.length < 8 * MB);
  });

  test('a file system that is too full for minFreeBytes fails no pull', async () => {
    await start({ minFreeBytes: '1000TB' });
    const [small, large] = [randomBlob(100), add(2 * MB)];
    upstream.addBlob('library/x', small);
    for (const blob of [small, large]) sameBytes((await get(blob)).body, blob.bytes);
    assert.deepEqual([...(await mirror.files('blobs')), ...(await mirror.files('ingest'))], []);
  });

  test('a stored file that is missing or short is fetched again within the same request', async () => {
    await start({});
    const large = add(2 * MB);
    const small = randomBlob(1000);
    upstream.addBlob('library/x', small);
    for (const blob of [large, small]) await get(blob);
    await until(stored(2), 'both are stored');
    for (const damage of [rm, (path: string) => truncate(path, 500)]) {
      // Small content is remembered in memory: only a restart looks at the file again.
      await mirror.restart();
      for (const blob of [large, small]) {
        await damage(pathOf(blob));
        const reply = await get(blob);
        assert.equal(reply.headers['x-cache'], 'miss');
        sameBytes(reply.body, blob.bytes);
        assert.equal((await mirror.head(`/v2/library/x/blobs/${blob.digest}`)).status, 200);
      }
      await until(stored(2), 'both are stored again');
    }
    await mirror.stop();
    await writeFile(pathOf(small), Buffer.alloc(1000));
    await mirror.start();
    sameBytes((await get(small)).body, small.bytes);
  });

  test('start-up mends what a crash has left behind', async () => {
    await start({});
    const [kept, lost] = [add(100_000), add(100_000)];
    for (const blob of [kept, lost]) await get(blob);
    await until(stored(2), 'both are stored');
    await mirror.stop();
    const stray = join(mirror.dataDirectory, 'blobs/sha256/00', '0'.repeat(64));
    await mkdir(join(stray, '..'), { recursive: true });
    await writeFile(stray, 'no row knows me');
    await writeFile(join(mirror.dataDirectory, 'ingest/7-half'), 'half');
    await rm(pathOf(lost));
    // Files of the last second are taken for new.
    await until(async () => Date.now() - (await stat(stray)).ctimeMs > 1000, 'the file is old');
    await mirror.start();
    assert.deepEqual(
      (await mirror.files('blobs')).map(({ path }) => join(mirror.dataDirectory, path)),
      [pathOf(kept)],
    );
    assert.deepEqual(await mirror.files('ingest'), []);
    upstream.forget();
    assert.equal((await get(kept)).headers['x-cache'], 'hit');
    assert.equal((await get(lost)).headers['x-cache'], 'miss');
    assert.equal(upstream.count('blob'), 1);
  });

  test('one digest that comes as a blob and as a manifest counts once, and stays a manifest', async () => {
    await start({});
    const image = imageOf([], randomBlob(100));
    const index = manifestOf(
      { schemaVersion: 2, manifests: [], padding: 'x'.repeat(100_000) },
      'application/vnd.oci.image.index.v1+json',
    );
    upstream.addImage('library/x', image, '1');
    upstream.addManifest('library/x', index, 'index');
    upstream.addBlob('library/x', index);
    await Promise.all([get(index), mirror.get('/v2/library/x/manifests/index'), get(index)]);
    await until(stored(1), 'it is stored');
    await mirror.restart();
    assert.equal(await mirror.metric('layercache_store_bytes'), Math.ceil(index.bytes.length / 4096) * 4096);
    upstream.forget();
    const reply = await mirror.get(`/v2/library/x/manifests/${index.digest}`);
    assert.equal(reply.headers['content-type'], index.mediaType);
    assert.equal((await get(index)).headers['content-type'], 'application/octet-stream');
    assert.equal(upstream.calls.length, 0);
  });

  test('a second process on the same directory is refused with a clear error', async () => {
    await start({});
    await assert.rejects(
      (async () => {
        const { Service } = await import('../../src/service.ts');
        const { loadConfig } = await import('../../src/config.ts');
        const file = join(mirror.directory, 'mirror.config.json');
        await Service.start(loadConfig({ file, env: {}, directory: mirror.directory }), {
          logSink: { write: () => 0 },
        });
      })(),
      /lock\.db is locked: another layercache is running on this data directory/,
    );
    await mirror.restart();
  });
});
