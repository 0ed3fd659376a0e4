import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { ask, sameBytes } from '../support/http.ts';
import { imageOf, largeBlob, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { missing } from '../support/programs.ts';
import { Upstream } from '../support/upstream.ts';

const MB = 1_000_000;

describe('a disk in trouble', { skip: missing('mount') }, () => {
  let upstream: Upstream;
  let mirror: TestMirror;

  beforeEach(async () => {
    upstream = await Upstream.start();
    mirror = await TestMirror.start({ upstream: upstream.url });
    mirror.clock.run();
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  /** The data directory on a file system of its own. */
  async function on(
    options: string,
    work: () => Promise<void>,
    config: Record<string, unknown> = {},
  ): Promise<void> {
    await mirror.stop();
    mirror.reconfigure({ config });
    await rm(mirror.dataDirectory, { recursive: true });
    await mkdir(mirror.dataDirectory);
    execFileSync('mount', ['-t', 'tmpfs', '-o', options, 'none', mirror.dataDirectory]);
    try {
      await mirror.start();
      await work();
    } finally {
      await mirror.stop();
      execFileSync('umount', [mirror.dataDirectory]);
    }
  }

  async function assertPulls(name: string, size: number): Promise<void> {
    const image = imageOf([largeBlob(size)]);
    upstream.addImage(`library/${name}`, image, '1');
    const manifest = await mirror.get(`/v2/library/${name}/manifests/1`);
    sameBytes(manifest.body, image.manifest.bytes);
    for (const { digest, bytes } of [image.config, ...image.layers]) {
      const readers = [1, 2].map(() => mirror.get(`/v2/library/${name}/blobs/${digest}`));
      for (const reply of await Promise.all(readers)) sameBytes(reply.body, bytes);
    }
  }

  const admin = async (path: string): Promise<string> => {
    const reply = await ask(`${mirror.adminUrl}${path}`);
    assert.equal(reply.status, 200);
    return reply.body.toString().trim();
  };
  const writable = (): Promise<number> => mirror.metric('layercache_store_writable');

  test('full or read-only at the start: it serves what is there, relays the rest, and stores again', async () => {
    await on('size=24m', async () => {
      const image = imageOf([largeBlob(MB)]);
      upstream.addImage('library/held', image, '1');
      const pullHeld = async (): Promise<void> => {
        sameBytes((await mirror.get('/v2/library/held/manifests/1')).body, image.manifest.bytes);
        for (const { digest, bytes } of [image.config, ...image.layers])
          sameBytes((await mirror.get(`/v2/library/held/blobs/${digest}`)).body, bytes);
      };
      await pullHeld();
      await until(async () => (await mirror.files('blobs')).length === 3, 'it is stored');
      for (const trouble of ['read-only', 'full'] as const) {
        await mirror.stop();
        const filler = join(mirror.dataDirectory, 'filler');
        if (trouble === 'read-only') execFileSync('mount', ['-o', 'remount,ro', mirror.dataDirectory]);
        else {
          // To the last block.
          execFileSync('sh', ['-c', `cat /dev/zero > ${filler} 2>/dev/null || true`]);
          await rm(join(mirror.dataDirectory, 'lock.db'), { force: true });
        }
        upstream.forget();
        await mirror.start();
        mirror.clock.run();
        assert.match(
          await admin('/readyz'),
          /^degraded: the store cannot be written|^degraded: the file system/,
          trouble,
        );
        await pullHeld();
        assert.equal(upstream.count('blob'), 0, `${trouble}: what is there is served`);
        await assertPulls(`new-${trouble}`, MB);
        if (trouble === 'read-only') execFileSync('mount', ['-o', 'remount,rw', mirror.dataDirectory]);
        else await rm(filler);
        await until(async () => (await admin('/readyz')) === 'ok', 'it is well again');
        const before = (await mirror.files('blobs')).length;
        await assertPulls(`after-${trouble}`, MB);
        await until(async () => (await mirror.files('blobs')).length > before, 'it stores again');
      }
    });
  });

  test('read-only: pulls go past the store, it is said loudly, and ends by itself', async () => {
    await assertPulls('before', MB);
    // A file that is renamed out of the mount below would fail with EXDEV, which is told instead.
    await until(async () => (await mirror.files('blobs')).length === 3, 'all is stored');
    const directory = join(mirror.dataDirectory, 'ingest');
    execFileSync('mount', ['--bind', directory, directory]);
    execFileSync('mount', ['-o', 'remount,bind,ro', directory]);
    try {
      await assertPulls('meanwhile', 3 * MB);
      await until(async () => (await writable()) === 0, 'it is known');
      assert.match(await admin('/readyz'), /^degraded: the store cannot be written \(EROFS\)$/);
      assert.equal(await admin('/healthz'), 'ok');
      await until(() => mirror.log.includes('the store cannot be written (EROFS)'), 'the log tells');
    } finally {
      execFileSync('umount', [directory]);
    }
    await until(async () => (await writable()) === 1, 'it is tried again');
    assert.equal(await admin('/readyz'), 'ok');
    await assertPulls('after', MB);
    await until(async () => (await mirror.files('blobs')).length >= 6, 'storing goes on');
  });

  test('hardly any inodes: what is worth least makes room for files too', () =>
    on('size=64m,nr_inodes=60', async () => {
      for (let i = 0; i < 15; i++) await assertPulls(`many-${i}`, 200_000);
      assert.ok((await mirror.metric('layercache_evictions_total{reason="min-free"}')) > 0);
      assert.equal(await admin('/healthz'), 'ok');
    }));

  test('smaller than what is pulled, under a cap that is far off', () =>
    on(
      'size=96m',
      async () => {
        await assertPulls('image', 20 * MB);
        await assertPulls('large', 256 * MB);
        await assertPulls('again', 20 * MB);
        assert.equal(await admin('/healthz'), 'ok');
      },
      { store: { maxBytes: '5GB', minFreeBytes: 0 } },
    ));

  test('a data directory that is gone', async () => {
    await assertPulls('before', MB);
    await until(async () => (await mirror.files('blobs')).length === 3, 'all is stored');
    await rm(join(mirror.dataDirectory, 'blobs'), { recursive: true });
    await rm(join(mirror.dataDirectory, 'ingest'), { recursive: true });
    await writeFile(join(mirror.dataDirectory, 'ingest'), 'in the way');
    const again = await mirror.get('/v2/library/before/manifests/1');
    assert.equal(again.status, 200);
    await assertPulls('meanwhile', 3 * MB);
    await rm(join(mirror.dataDirectory, 'ingest'));
    await until(async () => (await writable()) === 1, 'it is there again');
    await assertPulls('after', MB);
    await until(async () => (await mirror.files('blobs')).length >= 3, 'storing goes on');
  });

  test('a file system that takes nothing: hits go on, nothing is forgotten, nothing spins', async () => {
    await mirror.stop();
    mirror.reconfigure({ config: { store: { maxBytes: 12 * MB, minFreeBytes: 0, maxIdle: '1s' } } });
    await mirror.start();
    const blobs = Array.from({ length: 5 }, () => largeBlob(2 * MB));
    for (const blob of blobs) {
      upstream.addBlob('library/x', blob);
      await mirror.get(`/v2/library/x/blobs/${blob.digest}`);
    }
    await until(async () => (await mirror.files('blobs')).length === 5, 'all is stored');
    const directory = join(mirror.dataDirectory, 'blobs');
    execFileSync('mount', ['--bind', directory, directory]);
    execFileSync('mount', ['-o', 'remount,bind,ro', directory]);
    try {
      mirror.clock.advance(2000);
      await until(async () => (await writable()) === 0, 'it is known');
      await assertPulls('meanwhile', 9 * MB);
      assert.ok(mirror.log.split('\n').length < 300);
      assert.equal((await mirror.files('blobs')).length, 5);
    } finally {
      execFileSync('umount', [directory]);
    }
    await until(async () => (await writable()) === 1, 'it is tried again');
  });

  test('what is damaged and pinned is fetched again at once', async () => {
    await mirror.stop();
    mirror.reconfigure({ config: { store: { pins: ['docker.io/library/x:1'] } } });
    await mirror.start();
    const image = imageOf([randomBlob(200_000)]);
    upstream.addImage('library/x', image, '1');
    await mirror.get('/v2/library/x/manifests/1');
    for (const { digest } of [image.config, ...image.layers])
      await mirror.get(`/v2/library/x/blobs/${digest}`);
    const isStored = async (): Promise<boolean> =>
      (await mirror.files('blobs')).length === 3 && (await mirror.metric('layercache_fills_active')) === 0;
    await until(isStored, 'all is stored');
    const { digest, bytes } = image.layers[0]!;
    const hex = digest.slice(7);
    await writeFile(join(mirror.dataDirectory, 'blobs/sha256', hex.slice(0, 2), hex), 'something else');
    upstream.forget();
    sameBytes((await mirror.get(`/v2/library/x/blobs/${digest}`)).body, bytes);
    const post = { method: 'POST', headers: { 'content-type': 'application/json' } };
    await until(isStored, 'it is stored again');
    await writeFile(join(mirror.dataDirectory, 'blobs/sha256', hex.slice(0, 2), hex), 'something else');
    const put = await ask(`${mirror.adminUrl}/api/quarantine`, {
      ...post,
      body: JSON.stringify({ digests: [digest] }),
    });
    assert.equal(put.body.toString(), '{"quarantined":1}');
    await until(() => upstream.count('blob') === 2, 'it is fetched again');
    await until(isStored, 'it is stored again');
    assert.equal(await mirror.metric('layercache_damaged_blobs_total'), 2);
  });
});
