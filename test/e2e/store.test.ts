import Database from 'better-sqlite3';
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdir, open, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { SmallContent, StoredContent } from '../../src/store/reading/stored-content.ts';
import { ask, sameBytes, type Reply } from '../support/http.ts';
import { imageOf, largeBlob, manifestOf, randomBlob, type Blob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { run } from '../support/programs.ts';
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

  describe('a catalog with a page of garbage', () => {
    const image = imageOf([randomBlob(3000), randomBlob(5000), largeBlob(200_000)]);
    const parts = [image.config, ...image.layers];
    const catalog = (): string => join(mirror.dataDirectory, 'catalog.db');

    async function begin(): Promise<void> {
      upstream.addImage('library/x', image, '1');
      await start({});
      await pull();
      await until(stored(5), 'it is stored');
    }

    async function pull(): Promise<void> {
      const { status, body } = await mirror.get('/v2/library/x/manifests/1');
      assert.equal(status, 200, body.toString());
      for (const part of parts) {
        const reply = await get(part);
        assert.equal(reply.status, 200, reply.body.toString());
        sameBytes(reply.body, part.bytes);
      }
    }

    async function spoil(page: number): Promise<void> {
      const file = await open(catalog(), 'r+');
      await file.write(randomBytes(4096), 0, 4096, (page - 1) * 4096);
      await file.close();
    }

    test('is refused at the start, with its path and what to do, unless that page is not in use', async () => {
      await begin();
      await mirror.stop();
      const whole = await readFile(catalog());
      let refused = 0;
      const pages = whole.length / 4096;
      for (let page = 1; page <= pages; page += 1) {
        await spoil(page);
        const error = await mirror.start().then(
          () => undefined,
          (each: unknown) => each as Error,
        );
        if (error) {
          refused += 1;
          const remedy =
            /catalog\.db cannot be used \(SQLITE_(CORRUPT|NOTADB)\S*\): it is damaged: "layercache store rebuild"/;
          assert.match(error.message, remedy, `page ${page}`);
        } else {
          await pull();
          await mirror.stop();
        }
        assert.equal((await mirror.files('blobs')).length, 5);
        for (const ending of ['-wal', '-shm']) await rm(catalog() + ending, { force: true });
        await writeFile(catalog(), whole);
      }
      assert.ok(refused > pages / 2, `${refused} of ${pages}`);
    });

    test('that becomes so while it is in use: pulls go past it, and it is told', async () => {
      await begin();
      await mirror.stop();
      const db = new Database(catalog());
      const roots = db
        .prepare<[], { name: string; page: number }>(
          `SELECT name, rootpage AS page FROM sqlite_master
           WHERE rootpage > 0 AND tbl_name IN ('blobs', 'links', 'tags', 'children')`,
        )
        .all();
      db.close();
      await mirror.start();
      for (const { page } of roots) await spoil(page);
      // Whoever has it open reads it again after somebody else has written to it.
      const other = new Database(catalog());
      other.prepare(`INSERT OR REPLACE INTO notes VALUES ('test', '')`).run();
      const mark = mirror.log.length;
      for (let i = 0; i < 2; i++) await pull();
      upstream.addImage('library/y', imageOf([randomBlob(4000)]), '1');
      assert.equal((await mirror.get('/v2/library/y/manifests/1')).status, 200);
      assert.equal((await mirror.head('/v2/library/x/manifests/1')).status, 200);
      assert.equal((await mirror.get('/v2/library/x/tags/list')).status, 200);
      const { status, body } = await ask(`${mirror.adminUrl}/readyz`);
      assert.equal(status, 200);
      assert.match(body.toString(), /degraded: the catalog is damaged: .*layercache store rebuild/);
      assert.match(await mirror.metrics(), /^layercache_store_writable 0$/m);
      const pin = await ask(`${mirror.adminUrl}/api/pin`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ pattern: 'docker.io/library/x' }),
      });
      assert.equal(pin.status, 409);
      assert.match(pin.body.toString(), /catalog\.db cannot be used.*layercache store rebuild/);
      await until(() => mirror.log.includes('the catalog is damaged'), 'the log tells');
      const loud = mirror.log
        .slice(mark)
        .split('\n')
        .filter((line) => /"level":(40|50|60)/.test(line));
      assert.equal(loud.filter((line) => line.includes('the catalog is damaged')).length, 1);
      assert.equal(loud.length, 1, loud.join('\n'));
      other.close();
      await mirror.stop();
      assert.equal((await mirror.files('blobs')).length, 5, 'nothing is thrown away');
      await assert.rejects(mirror.start(), /catalog\.db cannot be used \(SQLITE_CORRUPT/);
    });

    test('in a large catalog is found behind the start, and no backup is made of it', async () => {
      await begin();
      await until(
        async () => (await mirror.files()).some(({ path }) => path === 'catalog.backup.db'),
        'it is backed up',
      );
      await mirror.stop();
      const db = new Database(catalog());
      db.exec('CREATE TABLE large AS SELECT zeroblob(140000000) AS bytes');
      const index = db
        .prepare<[], { page: number }>(
          `SELECT rootpage AS page FROM sqlite_master WHERE name = 'links_by_repo'`,
        )
        .get();
      db.close();
      await spoil(index?.page ?? 0);
      const backup = join(mirror.dataDirectory, 'catalog.backup.db');
      await utimes(backup, 1, 1);
      await mirror.start();
      await until(() => mirror.log.includes('the catalog is damaged'), 'it is found');
      await pull();
      assert.equal((await mirror.files('blobs')).length, 5);
      await mirror.stop();
      assert.equal((await stat(backup)).mtimeMs, 1000);
    });
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
    // Its file is there before its fill is over, and only then may it leave.
    await mirror.fillsEnded();
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

  test('what lies in the place of a stored file and is none is damage, and nobody waits for it', async () => {
    await start({});
    const blobs = [add(50_000), add(2 * MB), add(2 * MB + 1)];
    for (const blob of blobs) await get(blob);
    await until(stored(3), 'they are stored');
    await mirror.stop();
    for (const [i, blob] of blobs.entries()) {
      await rm(pathOf(blob));
      await run(i < 2 ? 'mkfifo' : 'mkdir', [pathOf(blob)]);
    }
    await mirror.start();
    for (const blob of blobs) {
      const { status, body, headers } = await get(blob);
      assert.deepEqual([status, headers['x-cache']], [200, 'miss']);
      sameBytes(body, blob.bytes);
    }
    assert.equal(await mirror.metric('layercache_damaged_blobs_total'), 3);
    await until(stored(3), 'they are stored again');
    for (const blob of blobs) assert.equal((await get(blob)).headers['x-cache'], 'hit');
  });

  test('a disk that does not answer keeps nobody waiting for longer than firstByteTimeout', async (t) => {
    const config = { fetch: { firstByteTimeout: '500ms' } };
    mirror = await TestMirror.start({ upstream: upstream.url, config });
    const blobs = [add(50_000), add(2 * MB)];
    for (const blob of blobs) await get(blob);
    await until(stored(2), 'they are stored');
    await mirror.restart();
    const hung = Promise.withResolvers<undefined>();
    for (const content of [SmallContent, StoredContent])
      t.mock.method(content.prototype, 'prepare', () => hung.promise);
    for (const blob of blobs) {
      const began = performance.now();
      const { status, body } = await get(blob);
      assert.equal(status, 504);
      assert.match(body.toString(), /from the store's disk: deadline exceeded/);
      assert.ok(performance.now() - began < 3000);
    }
    t.mock.restoreAll();
    hung.resolve(undefined);
    for (const blob of blobs) assert.equal((await get(blob)).headers['x-cache'], 'hit');
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
    const mark = mirror.log.length;
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
    const loud = (): string[] =>
      mirror.log
        .slice(mark)
        .split('\n')
        .filter((line) => /"level":(40|50|60)/.test(line));
    const mended = /"level":40.*"strayFiles":1,"lostBlobs":1,"msg":"removed leftovers of a crash"/;
    await until(() => mended.test(loud().join('\n')), 'it is told');
    assert.equal(loud().length, 1, 'what a crash leaves is no damage');
    assert.equal(await mirror.metric('layercache_damaged_blobs_total'), 0);
    await until(stored(2), 'it is stored again');
    await rm(pathOf(kept));
    assert.equal((await get(kept)).headers['x-cache'], 'miss');
    const damaged = /"level":50.*its file is missing.*a stored blob is damaged/;
    await until(() => damaged.test(loud().join('\n')), 'of what goes missing later it is told');
    assert.equal(await mirror.metric('layercache_damaged_blobs_total'), 1);
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
        const { Service } = await import('../../src/service/service.ts');
        const { loadConfig } = await import('../../src/config/load.ts');
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
