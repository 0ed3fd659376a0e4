import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sendBlob } from '../support/bodies.ts';
import { errorOf, sameBytes, type Reply } from '../support/http.ts';
import { blobOf, largeBlob, randomBlob, type Blob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream, type Script } from '../support/upstream.ts';

const MiB = 1024 * 1024;

/** Sends the first part, then waits for `go`, then the rest. */
function inTwoParts(blob: Blob, first: number, go: Promise<unknown>, wrong = false): Script {
  return async (call, _req, res) => {
    res.writeHead(200, { 'content-length': blob.bytes.length });
    res.write(blob.bytes.subarray(0, first));
    await go;
    const rest = Buffer.from(blob.bytes.subarray(first));
    if (wrong) rest[0] = (rest[0] ?? 0) ^ 1;
    res.end(rest);
    call.sent += blob.bytes.length;
  };
}

function gate(): { open: () => void; opened: Promise<undefined> } {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  return { open: () => resolve(undefined), opened: promise };
}

describe('fills', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const big = largeBlob(24 * MiB + 17);
  const path = `/v2/library/x/blobs/${big.digest}`;

  beforeEach(async () => {
    upstream = await Upstream.start();
    upstream.addBlob('library/x', big);
    mirror = await TestMirror.start({ upstream: upstream.url });
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const stored = async (): Promise<boolean> => (await mirror.files('blobs')).length === 1;

  test('16 clients on one cold blob: each byte comes once, all right', async () => {
    const replies = await Promise.all(Array.from({ length: 16 }, () => mirror.get(path)));
    for (const reply of replies) assert.ok(!reply.broken && reply.body.equals(big.bytes));
    assert.equal(upstream.count('blob'), 2);
    assert.equal(upstream.blobBytes, big.bytes.length);
    assert.equal(replies.filter(({ headers }) => headers['x-cache'] === 'miss').length, 1);
    assert.equal(
      await mirror.metric('layercache_upstream_bytes_total{registry="docker.io"}'),
      big.bytes.length,
    );
  });

  test('headers and what has come are passed on at once; latecomers join, leavers disturb nobody', async () => {
    const { open, opened } = gate();
    upstream.script('blob', inTwoParts(big, 3 * MiB, opened));
    const seen = gate();
    const first = mirror.get(path, {
      onData: (_chunk, total) => {
        if (total >= 2 * MiB) seen.open();
        return true;
      },
    });
    await seen.opened;
    const leaver = mirror.get(path, { onData: () => false });
    const late = mirror.get(path, { onHeaders: open });
    assert.ok((await leaver).broken);
    const [one, two] = await Promise.all([first, late]);
    assert.equal(one.headers['x-cache'], 'miss');
    assert.equal(two.headers['x-cache'], 'joined');
    assert.equal(one.headers['content-length'], String(big.bytes.length));
    for (const { body } of [one, two]) assert.ok(body.equals(big.bytes));
    assert.equal(upstream.count('blob'), 1);
    assert.equal(
      await mirror.metric('layercache_requests_total{registry="docker.io",kind="blob",result="error"}'),
      0,
    );
    assert.equal(await mirror.metric('layercache_faults_total{fault="client-gone"}'), 1);
  });

  test('the fill completes when all its clients have left', async () => {
    const { open, opened } = gate();
    upstream.script('blob', inTwoParts(big, 3 * MiB, opened));
    await Promise.all(Array.from({ length: 3 }, () => mirror.get(path, { onData: () => false })));
    open();
    await until(stored, 'the blob is stored');
    upstream.forget();
    assert.ok((await mirror.get(path)).body.equals(big.bytes));
    assert.equal(upstream.calls.length, 0);
  });

  test('a slow reader holds up nobody', async () => {
    const { open, opened } = gate();
    const slow = mirror.get(path, { onData: () => opened.then(() => undefined) });
    const fast = await mirror.get(path);
    assert.ok(fast.body.equals(big.bytes));
    open();
    assert.ok((await slow).body.equals(big.bytes));
  });

  test('the last byte is held until the digest is verified; corruption breaks every reader and leaves nothing', async () => {
    const { open, opened } = gate();
    upstream.script('blob', inTwoParts(big, 3 * MiB, opened, true), { times: 1 });
    const readers = Array.from({ length: 3 }, (_, i) =>
      mirror.get(path, { headers: i === 2 ? { range: 'bytes=0-' } : {} }),
    );
    open();
    for (const reply of await Promise.all(readers)) {
      assert.ok(reply.broken);
      assert.ok(reply.body.length < big.bytes.length);
    }
    await until(async () => (await mirror.files('ingest')).length === 0, 'the ingest is gone');
    assert.deepEqual(await mirror.files('blobs'), []);
    assert.equal(await mirror.metric('layercache_faults_total{fault="digest-mismatch"}'), 4);
    assert.ok((await mirror.get(path)).body.equals(big.bytes), 'the next request starts afresh');
  });

  test('a small corrupt blob is an error status: nothing of it is shown', async () => {
    const small = randomBlob(5000);
    upstream.addBlob('library/x', { digest: small.digest, bytes: randomBlob(5000).bytes });
    const reply = await mirror.get(`/v2/library/x/blobs/${small.digest}`);
    assert.equal(reply.status, 502);
    assert.deepEqual(await mirror.files('blobs'), []);
  });

  test('an unknown size: chunked, Range ignored, verified all the same', async () => {
    upstream.script('blob', (_call, _req, res) => void res.writeHead(200).end(big.bytes));
    const reply = await mirror.get(path, { headers: { range: 'bytes=5-9' } });
    assert.equal(reply.status, 200);
    assert.equal(reply.headers['content-length'], undefined);
    assert.ok(reply.body.equals(big.bytes));
    await until(stored, 'the blob is stored');
    assert.equal((await mirror.get(path, { headers: { range: 'bytes=5-9' } })).status, 206);
  });

  for (const waitMs of [0, 300])
    test(`an answer without length or bytes is no empty blob, ${waitMs} ms late`, async () => {
      upstream.script('blob', async (_call, _req, res) => {
        res.writeHead(200).flushHeaders();
        await new Promise((resolve) => setTimeout(resolve, waitMs));
        res.end();
      });
      const asked = [{}, {}, { range: 'bytes=0-' }, { range: 'bytes=0-9' }] as Record<string, string>[];
      const isRefused = ({ status, broken }: Reply): boolean => broken || status === 502;
      for (const reply of await Promise.all(asked.map((headers) => mirror.get(path, { headers }))))
        assert.ok(isRefused(reply), `${reply.status}`);
      assert.deepEqual(await mirror.files('blobs'), []);
      // Past the store too.
      await mirror.reload({ config: { store: { maxBytes: 100_000 } } });
      assert.ok(isRefused(await mirror.get(path)));
    });

  test('a range of a blob that is still arriving', async () => {
    const replies = await Promise.all([
      mirror.get(path),
      mirror.get(path, { headers: { range: `bytes=${20 * MiB}-${21 * MiB - 1}` } }),
      mirror.get(path, { headers: { range: 'bytes=-7' } }),
    ]);
    assert.deepEqual(
      replies.map(({ status }) => status),
      [200, 206, 206],
    );
    assert.ok(replies[1].body.equals(big.bytes.subarray(20 * MiB, 21 * MiB)));
    assert.ok(replies[2].body.equals(big.bytes.subarray(-7)));
    assert.equal(upstream.blobBytes, big.bytes.length);
  });

  test('the empty blob and a two-byte one', async () => {
    for (const blob of [blobOf(''), blobOf('{}')]) {
      upstream.addBlob('library/x', blob);
      for (let i = 0; i < 2; i++) {
        const reply = await mirror.get(`/v2/library/x/blobs/${blob.digest}`);
        assert.equal(reply.status, 200);
        assert.equal(reply.headers['content-length'], String(blob.bytes.length));
        sameBytes(reply.body, blob.bytes);
      }
    }
    assert.equal(
      (await mirror.get(`/v2/library/x/blobs/${blobOf('').digest}`, { headers: { range: 'bytes=0-' } }))
        .status,
      416,
    );
  });

  test('HEAD of a cold blob tells the size without fetching it', async () => {
    const reply = await mirror.head(path);
    assert.equal(reply.status, 200);
    assert.equal(reply.headers['content-length'], String(big.bytes.length));
    assert.equal(upstream.count('blob', { method: 'GET' }), 0);
    upstream.script('blob', (_call, _req, res) => void res.writeHead(403).end(), {
      match: ({ method }) => method === 'HEAD',
    });
    assert.equal((await mirror.head(path)).headers['content-length'], String(big.bytes.length));
    assert.equal(upstream.calls.at(-1)?.headers.range, 'bytes=0-0');
  });

  test('an unknown blob is 404, and asked for once', async () => {
    const { digest } = randomBlob(3);
    for (let i = 0; i < 3; i++) {
      const reply = await mirror.get(`/v2/library/x/blobs/${digest}`);
      assert.equal(reply.status, 404);
      assert.equal(errorOf(reply).code, 'BLOB_UNKNOWN');
    }
    assert.equal(upstream.count('blob'), 1);
  });

  test('small blobs do not wait for the end of a large one’s spans', async () => {
    await mirror.close();
    mirror = await TestMirror.start({
      upstream: upstream.url,
      upstreamConfig: { maxConnections: 4 },
      config: { fetch: { spanBytes: '4MiB', firstByteTimeout: '3s' } },
    });
    upstream.script('blob', sendBlob(big, { bytesPerSecond: MiB / 2 }), {
      match: ({ reference }) => reference === big.digest,
    });
    const large = mirror.get(path, { onData: (_chunk, total) => total < 3 * MiB });
    await until(() => upstream.count('blob') === 4, 'the large one has all connections');
    const small = [1, 2, 3].map((i) => largeBlob(MiB + i));
    for (const blob of small) upstream.addBlob('library/x', blob);
    const replies = await Promise.all(small.map(({ digest }) => mirror.get(`/v2/library/x/blobs/${digest}`)));
    replies.forEach(({ body }, i) => sameBytes(body, small[i]!.bytes));
    upstream.behave();
    await large;
  });

  test('200 blobs at once stay within the cap on connections, and all complete', async () => {
    await mirror.close();
    mirror = await TestMirror.start({ upstream: upstream.url, upstreamConfig: { maxConnections: 5 } });
    const blobs = Array.from({ length: 200 }, () => randomBlob(70_000));
    let running = 0;
    let most = 0;
    for (const blob of blobs) upstream.addBlob('library/x', blob);
    upstream.script('blob', async (_call, _req, res, next) => {
      most = Math.max(most, ++running);
      res.once('close', () => running--);
      await new Promise(setImmediate);
      next();
    });
    const replies: Reply[] = await Promise.all(
      blobs.map(({ digest }) => mirror.get(`/v2/library/x/blobs/${digest}`)),
    );
    replies.forEach(({ body }, i) => assert.ok(body.equals(blobs[i]!.bytes)));
    assert.ok(most <= 5, `${most} at once`);
  });
});

test('an upstream that refuses every connection answers a miss in well under its deadline', async () => {
  const upstream = await Upstream.start();
  const mirror = await TestMirror.start({ upstream: upstream.url });
  await upstream.stop();
  const started = performance.now();
  const reply = await mirror.get(`/v2/library/x/blobs/${randomBlob(1).digest}`);
  assert.equal(reply.status, 503);
  assert.ok(performance.now() - started < 10_000);
  await mirror.close();
});
