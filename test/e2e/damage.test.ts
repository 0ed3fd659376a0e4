import assert from 'node:assert/strict';
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sendBlob } from '../support/bodies.ts';
import { sameBytes, type Reply } from '../support/http.ts';
import { largeBlob, type Blob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const MiB = 1024 * 1024;

async function flip(file: string, at: number): Promise<void> {
  const handle = await open(file, 'r+');
  const byte = Buffer.alloc(1);
  await handle.read(byte, 0, 1, at);
  await handle.write(Buffer.from([(byte[0] ?? 0) ^ 0xff]), 0, 1, at);
  await handle.close();
}

describe('what an earlier process has left of a blob, and is damaged', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  let blob: Blob;

  beforeEach(async () => {
    blob = largeBlob(12 * MiB);
    upstream = await Upstream.start();
    upstream.addBlob('library/x', blob);
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { fetch: { completeRanges: false } },
    });
    const left = await range(0, 6 * MiB);
    sameBytes(left.body, blob.bytes.subarray(0, 6 * MiB));
    await mirror.fillsEnded();
    await mirror.stop();
    const [file] = await readdir(join(mirror.dataDirectory, 'ingest'));
    await flip(join(mirror.dataDirectory, 'ingest', file!), 3 * MiB);
    await mirror.start();
    upstream.forget();
  });
  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const path = (): string => `/v2/library/x/blobs/${blob.digest}`;
  const range = (start: number, end: number): Promise<Reply> =>
    mirror.get(path(), { headers: { range: `bytes=${start}-${end - 1}` } });

  test('is not shown in a range', async () => {
    for (const [start, end] of [
      [3 * MiB - 10, 3 * MiB + 10],
      [0, 6 * MiB],
      [5 * MiB, 8 * MiB],
      [8 * MiB, 9 * MiB],
    ] as const) {
      const reply = await range(start, end);
      assert.equal(reply.status, 206);
      sameBytes(reply.body, blob.bytes.subarray(start, end));
    }
  });

  test('makes the whole start over within the same request', async () => {
    const reply = await mirror.get(path());
    assert.equal(reply.status, 200);
    sameBytes(reply.body, blob.bytes);
    await until(async () => (await mirror.get(path())).headers['x-cache'] === 'hit', 'it is stored');
    sameBytes((await mirror.get(path())).body, blob.bytes);
    assert.ok(upstream.blobBytes <= 1.6 * blob.bytes.length, `${upstream.blobBytes}`);
  });

  test('beside a whole pull that is slow, ranges come as they are', async () => {
    upstream.script('blob', sendBlob(blob, { bytesPerSecond: 4 * MiB }), {
      match: ({ headers }) => headers.range !== undefined,
      times: 1,
    });
    const whole = mirror.get(path());
    await until(() => upstream.count('blob') > 0, 'it has begun');
    sameBytes((await range(2 * MiB, 4 * MiB)).body, blob.bytes.subarray(2 * MiB, 4 * MiB));
    sameBytes((await whole).body, blob.bytes);
  });
});

describe('a flipped byte in a stored layer', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const blob = largeBlob(3 * MiB);
  const path = `/v2/library/x/blobs/${blob.digest}`;

  beforeEach(async () => {
    upstream = await Upstream.start();
    upstream.addBlob('library/x', blob);
    mirror = await TestMirror.start({ upstream: upstream.url });
    await mirror.get(path);
    await stored();
  });
  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  /** A fill that has all its bytes answers with `hit` too. */
  async function stored(): Promise<void> {
    await mirror.fillsEnded();
    assert.equal((await mirror.get(path)).headers['x-cache'], 'hit');
  }

  const damaged = (): Promise<number> => mirror.metric('layercache_damaged_blobs_total');
  async function flipStored(): Promise<void> {
    const file = (await mirror.files('blobs')).find(({ path: name }) => name.endsWith(blob.digest.slice(7)))!;
    await flip(join(mirror.dataDirectory, file.path), 2 * MiB);
  }

  test('is found behind the first whole read after a start, and is not served any more', async () => {
    await mirror.restart();
    await flipStored();
    await mirror.get(path);
    await until(async () => (await damaged()) === 1, 'it is found');
    const again = await mirror.get(path);
    assert.notEqual(again.headers['x-cache'], 'hit');
    sameBytes(again.body, blob.bytes);
  });

  test('is found when it is taken by its range, and when a client takes it twice', async () => {
    for (const headers of [{ range: 'bytes=0-' }, {}] as Record<string, string>[]) {
      const before = await damaged();
      mirror.clock.advance(10 * 60_000);
      await flipStored();
      for (let i = 0; i < 2; i++) await mirror.get(path, { headers });
      await until(async () => (await damaged()) === before + 1, 'it is found');
      sameBytes((await mirror.get(path)).body, blob.bytes);
      await stored();
    }
  });
});
