import Database from 'better-sqlite3';
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { ask, type Reply } from '../support/http.ts';
import {
  blobOf,
  imageOf,
  largeBlob,
  ociIndex,
  ociManifest,
  randomBlob,
  type Blob,
} from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const MB = 1_000_000;

describe('what leaves', () => {
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
  const isHeld = async ({ digest }: Blob): Promise<boolean> =>
    (await mirror.files('blobs')).some(({ path }) => path.endsWith(digest.slice(7)));

  async function fill(blob: Blob): Promise<void> {
    await get(blob);
    await mirror.fillsEnded();
  }

  test('ten layers that are asked for again and again survive a crawl of three times the cap', async () => {
    await start({ maxBytes: 20 * MB });
    const hot = Array.from({ length: 10 }, () => add(MB));
    for (let round = 0; round < 3; round++) for (const blob of hot) await fill(blob);
    for (let i = 0; i < 60; i++) {
      await fill(add(MB));
      if (i % 10 === 0) for (const blob of hot) await get(blob);
    }
    const kept = await Promise.all(hot.map(isHeld));
    assert.equal(kept.filter(Boolean).length, 10);
  });

  test('what was popular long ago leaves in the end', async () => {
    await start({ maxBytes: 10 * MB });
    const old = add(2 * MB);
    for (let i = 0; i < 50; i++) await fill(old);
    let count = 0;
    for (; count < 200 && (await isHeld(old)); count++) await fill(add(2 * MB));
    assert.ok(count > 10 && count < 200, String(count));
  });

  test('a manifest, which costs a pull, outlives layers that were used as often', async () => {
    await start({ maxBytes: 10 * MB });
    const image = imageOf([]);
    upstream.addImage('library/x', image, '1');
    await mirror.get('/v2/library/x/manifests/1');
    await mirror.get(`/v2/library/x/blobs/${image.config.digest}`);
    for (let i = 0; i < 50; i++) await fill(add(2 * MB));
    assert.ok(await isHeld(image.manifest));
    assert.ok(await isHeld(image.config));
  });

  test('what nobody asked for so long leaves', async () => {
    await start({ maxIdle: '1h' });
    const [used, idle] = [add(MB), add(MB)];
    await fill(used);
    await fill(idle);
    mirror.clock.advance(50 * 60_000);
    await get(used);
    mirror.clock.advance(20 * 60_000);
    await until(async () => !(await isHeld(idle)), 'it has left');
    assert.ok(await isHeld(used));
    const evicted = (): Promise<number> => mirror.metric('layercache_evictions_total{reason="idle"}');
    await until(async () => (await evicted()) === 1, 'it is counted');
  });

  test('a cap that was lowered is met behind the first answers', async () => {
    await start({ maxBytes: 20 * MB });
    const blobs = Array.from({ length: 9 }, () => add(2 * MB));
    for (const blob of [...blobs, blobs[8]!]) await fill(blob);
    await mirror.stop();
    mirror.reconfigure({ config: { store: { maxBytes: 9 * MB } } });
    await mirror.start();
    assert.equal((await get(blobs[8]!)).headers['x-cache'], 'hit');
    await until(async () => (await mirror.metric('layercache_store_bytes')) <= 9 * MB, 'it is met');
    assert.equal((await mirror.files('blobs')).length, 4);
  });
});

test('the catalog’s log does not grow, and the directory keeps to the cap, however much is missed', async (t) => {
  const upstream = await Upstream.start();
  const mirror = await TestMirror.start({
    upstream: upstream.url,
    config: { store: { maxBytes: '4MB' }, log: { level: 'error' }, fetch: { prefetch: 'off' } },
  });
  t.after(() => Promise.all([mirror.close(), upstream.stop()]));
  let largestLog = 0;
  let largest = 0;
  let pulled = 0;
  const end = performance.now() + 8000;
  const client = async (): Promise<void> => {
    while (performance.now() < end) {
      const blob = randomBlob(70_000);
      upstream.addBlob('library/x', blob);
      const reply = await mirror.get(`/v2/library/x/blobs/${blob.digest}`);
      assert.equal(reply.status, 200);
      pulled += 1;
    }
  };
  const watch = async (): Promise<void> => {
    while (performance.now() < end) {
      const files = await mirror.files();
      const log = files.find(({ path }) => path === 'catalog.db-wal')?.size ?? 0;
      largestLog = Math.max(largestLog, log);
      largest = Math.max(
        largest,
        files.reduce((sum, { size }) => sum + size, 0),
      );
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  await Promise.all([watch(), ...Array.from({ length: 16 }, client)]);
  t.diagnostic(`${pulled} misses, log at most ${largestLog} bytes, directory ${largest}`);
  assert.ok(pulled > 200);
  assert.ok(largestLog < 14e6, `${largestLog}`);
  assert.ok(largest < 4e6 + 32e6, `${largest}`);
  assert.match(await mirror.metrics(), /layercache_evictions_total\{reason="max-bytes"\}/);
});

test('indexes of very many parts do not make the catalog large, and what they took is given back', async (t) => {
  const upstream = await Upstream.start();
  const cap = 20e6;
  const mirror = await TestMirror.start({
    upstream: upstream.url,
    config: { store: { maxBytes: cap }, log: { level: 'error' }, fetch: { prefetch: 'off' } },
  });
  let largest = 0;
  let isOver = false;
  t.after(() => {
    isOver = true;
    return Promise.all([mirror.close(), upstream.stop()]);
  });
  const sizes = async (): Promise<Map<string, number>> => {
    const files = await mirror.files();
    largest = Math.max(
      largest,
      files.reduce((sum, { size }) => sum + size, 0),
    );
    return new Map(files.map(({ path, size }) => [path, size]));
  };
  const watch = async (): Promise<void> => {
    for (; !isOver; await new Promise((resolve) => setTimeout(resolve, 50))) await sizes();
  };
  const watching = watch();
  const wide = Array.from({ length: 16 }, (_, k) => {
    const manifests = Array.from({ length: 10_000 }, (_, i) => {
      return { mediaType: 'a/b', digest: blobOf(`${k} ${i}`).digest, size: 1 };
    });
    return {
      ...blobOf(JSON.stringify({ schemaVersion: 2, mediaType: ociIndex, manifests })),
      mediaType: ociIndex,
    };
  });
  for (const index of wide) {
    upstream.addManifest('library/x', index);
    assert.equal((await mirror.get(`/v2/library/x/manifests/${index.digest}`)).status, 200);
  }
  const last = `/v2/library/x/manifests/${wide.at(-1)!.digest}`;
  assert.equal((await mirror.get(last)).headers['x-cache'], 'hit');
  const blob = randomBlob(2e6);
  upstream.addBlob('library/y', blob);
  const path = `/v2/library/y/blobs/${blob.digest}`;
  assert.equal((await mirror.get(path)).headers['x-cache'], 'miss');
  await until(async () => (await mirror.get(path)).headers['x-cache'] === 'hit', 'others are still kept');
  const purged = await ask(`${mirror.adminUrl}/api/purge`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ pattern: 'docker.io/library/x', dryRun: false }),
  });
  assert.equal(purged.status, 200);
  // Some free pages are kept.
  await until(async () => ((await sizes()).get('catalog.db') ?? 0) < 5e6, 'the catalog is small again');
  isOver = true;
  await watching;
  t.diagnostic(`directory at most ${largest} bytes`);
  assert.ok(largest < cap + 32e6, `${largest}`);
});

test('the whole directory keeps to the cap and what stands beside it, also under manifests of many layers and long lists', async (t) => {
  const upstream = await Upstream.start();
  const cap = 40e6;
  const mirror = await TestMirror.start({
    upstream: upstream.url,
    config: { store: { maxBytes: cap }, log: { level: 'error' }, fetch: { prefetch: 'off' } },
  });
  let isOver = false;
  t.after(() => {
    isOver = true;
    return Promise.all([mirror.close(), upstream.stop()]);
  });
  const held = imageOf([randomBlob(1000)]);
  for (let k = 0; k < 6; k++) {
    upstream.addImage(`lists/${k}`, held, 'latest');
    for (let i = 0; i < 3000; i++)
      upstream.addManifest(`lists/${k}`, held.manifest, `${i}-${'x'.repeat(100)}`);
  }
  let largest = 0;
  let largestLog = 0;
  const watch = async (): Promise<void> => {
    for (; !isOver; await new Promise((resolve) => setTimeout(resolve, 50))) {
      const files = await mirror.files();
      const sum = files.reduce((sum, { size }) => sum + size, 0);
      largest = Math.max(largest, sum);
      largestLog = Math.max(largestLog, files.find(({ path }) => path === 'catalog.db-wal')?.size ?? 0);
    }
  };
  const watching = watch();
  for (let i = 0; i < 22; i++) {
    const blob = randomBlob(2e6);
    upstream.addBlob('library/x', blob);
    assert.equal((await mirror.get(`/v2/library/x/blobs/${blob.digest}`)).status, 200);
  }
  const end = performance.now() + 9000;
  let pulled = 0;
  const client = async (k: number): Promise<void> => {
    for (let i = 0; performance.now() < end; i++) {
      const layers = Array.from({ length: 150 }, (_, n) => {
        return { mediaType: 'a/b', digest: blobOf(`${k} ${i} ${n}`).digest, size: 500 };
      });
      const json = { schemaVersion: 2, mediaType: ociManifest, config: layers[0], layers };
      const manifest = { ...blobOf(JSON.stringify(json)), mediaType: ociManifest };
      upstream.addManifest('library/x', manifest);
      const path =
        i % 8 > 0
          ? `/v2/library/x/manifests/${manifest.digest}`
          : `/v2/lists/${k}/tags/list?n=${800 + (i % 200)}`;
      assert.equal((await mirror.get(path)).status, 200);
      pulled += 1;
    }
  };
  await Promise.all(Array.from({ length: 6 }, (_, k) => client(k)));
  isOver = true;
  await watching;
  t.diagnostic(`${pulled} misses, directory at most ${largest} bytes, log ${largestLog}`);
  assert.ok(pulled > 300);
  assert.ok(largest < cap + 32 * 1024 * 1024, `${largest}`);
  assert.ok(largestLog < 16e6, `${largestLog}`);
  assert.match(await mirror.metrics(), /layercache_store_bytes [1-9]/);
});

test('a hit counts as one use, whether the manifest is in memory or on disk', async (t) => {
  const upstream = await Upstream.start();
  const image = imageOf([]);
  upstream.addImage('library/x', image, '1');
  const mirror = await TestMirror.start({ upstream: upstream.url, config: { tags: { ttl: '1h' } } });
  t.after(() => Promise.all([mirror.close(), upstream.stop()]));
  const uses = (): number => {
    const db = new Database(join(mirror.dataDirectory, 'catalog.db'), { readonly: true });
    const row = db
      .prepare<[string], { uses: number }>('SELECT uses FROM blobs WHERE digest = ?')
      .get(image.manifest.digest);
    db.close();
    return row!.uses;
  };
  await mirror.get('/v2/library/x/manifests/1');
  await mirror.stop();
  for (const path of ['1', image.manifest.digest]) {
    const before = uses();
    await mirror.start();
    // From disk, then from memory.
    for (let i = 0; i < 2; i++) {
      const reply = await mirror.get(`/v2/library/x/manifests/${path}`);
      assert.equal(reply.headers['x-cache'], 'hit');
    }
    await mirror.stop();
    assert.equal(uses() - before, 2, path);
  }
});
