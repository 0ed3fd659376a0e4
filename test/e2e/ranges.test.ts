import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sendBlob } from '../support/bodies.ts';
import { errorOf, sameBytes, type Reply } from '../support/http.ts';
import { imageOf, largeBlob, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const MiB = 1024 * 1024;

describe('ranges of cold blobs', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const blob = largeBlob(20 * MiB + 5);
  const path = `/v2/library/x/blobs/${blob.digest}`;

  async function start(fetch: object = {}): Promise<void> {
    upstream = await Upstream.start();
    upstream.addBlob('library/x', blob);
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { fetch: { spanBytes: '1MiB', ...fetch } },
    });
  }

  beforeEach(() => start());

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  async function restart(fetch: object): Promise<void> {
    await mirror.close();
    await upstream.stop();
    await start(fetch);
  }

  const ask = (range: string, headers = {}): Promise<Reply> =>
    mirror.get(path, { headers: { range, ...headers } });
  const stored = async (): Promise<boolean> => (await mirror.files('blobs')).length === 1;
  const asked = (): (string | undefined)[] =>
    upstream.calls
      .filter(({ kind, method }) => kind === 'blob' && method === 'GET')
      .map(({ headers }) => headers.range);

  const cases: [range: string, start: number, end: number][] = [
    [`bytes=${15 * MiB}-${16 * MiB - 1}`, 15 * MiB, 16 * MiB],
    [`bytes=${15 * MiB}-`, 15 * MiB, blob.bytes.length],
    ['bytes=-100000', blob.bytes.length - 100_000, blob.bytes.length],
    [`bytes=0-${blob.bytes.length}`, 0, blob.bytes.length],
    ['bytes=0-', 0, blob.bytes.length],
  ];
  for (const [range, from, to] of cases) {
    test(`${range}: 206 at once, and the rest follows, each byte once`, async () => {
      const reply = await ask(range);
      assert.equal(reply.status, 206);
      assert.equal(reply.headers['content-range'], `bytes ${from}-${to - 1}/${blob.bytes.length}`);
      assert.equal(reply.headers['x-cache'], 'miss');
      sameBytes(reply.body, blob.bytes.subarray(from, to));
      assert.ok(asked()[0]?.startsWith(`bytes=${from}-`));
      await until(stored, 'the whole is stored');
      assert.equal(upstream.blobBytes, blob.bytes.length);
      sameBytes((await mirror.get(path)).body, blob.bytes);
    });
  }

  test('a range of a slow blob that others are pulling is not waited for', async () => {
    upstream.script('blob', sendBlob(blob, { bytesPerSecond: 2 * MiB }));
    const whole = mirror.get(path, { onData: () => true });
    await until(() => upstream.count('blob') === 4, 'all its connections are busy');
    const started = performance.now();
    const reply = await ask(`bytes=${15 * MiB}-${15 * MiB + 999}`);
    sameBytes(reply.body, blob.bytes.subarray(15 * MiB, 15 * MiB + 1000));
    assert.ok(performance.now() - started < 5000);
    upstream.behave();
    sameBytes((await whole).body, blob.bytes);
  });

  test('a probe costs its bytes and a connection; more is fetched when more is asked for', async () => {
    const probe = await ask('bytes=0-1');
    assert.equal(probe.status, 206);
    await mirror.fillsEnded();
    assert.equal(upstream.blobBytes, 2);
    assert.deepEqual(asked(), ['bytes=0-1']);
    assert.deepEqual(await mirror.files('ingest'), []);
    await ask(`bytes=${MiB}-${2 * MiB - 1}`);
    await until(stored, 'the rest has followed');
  });

  test('without completeRanges nothing follows, and what is there is not asked for again', async () => {
    await restart({ completeRanges: false });
    const range = `bytes=${3 * MiB}-${4 * MiB - 1}`;
    sameBytes((await ask(range)).body, blob.bytes.subarray(3 * MiB, 4 * MiB));
    await mirror.fillsEnded();
    assert.equal(upstream.blobBytes, MiB);
    assert.equal(await mirror.metric('layercache_fill_bytes_pending'), MiB);
    upstream.forget();
    sameBytes((await ask(range)).body, blob.bytes.subarray(3 * MiB, 4 * MiB));
    assert.equal(upstream.calls.length, 0);
    await mirror.fillsEnded();
    sameBytes((await mirror.get(path)).body, blob.bytes);
    assert.equal(upstream.blobBytes, blob.bytes.length - MiB);
  });

  test('open-ended ranges that are left after a piece, eight at a time, cost the blob once', async () => {
    upstream.script('blob', sendBlob(blob, { bytesPerSecond: 10 * MiB }));
    const piece = 2 * MiB;
    const starts = Array.from({ length: 10 }, (_, i) => i * piece);
    const next = starts.values();
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (const from of next) {
          const reply = await mirror.get(path, {
            headers: { range: `bytes=${from}-` },
            onData: (_chunk, total) => total < piece,
          });
          sameBytes(reply.body.subarray(0, piece), blob.bytes.subarray(from, from + piece));
        }
      }),
    );
    await until(stored, 'the whole is stored');
    assert.ok(upstream.blobBytes < 1.3 * blob.bytes.length, `${upstream.blobBytes} bytes`);
  });

  test('what lies past the end is 416 with the size, and another condition asks for the whole', async () => {
    const past = await ask(`bytes=${blob.bytes.length}-`);
    assert.equal(past.status, 416);
    assert.equal(past.headers['content-range'], `bytes */${blob.bytes.length}`);
    assert.equal((await ask('bytes=5-9', { 'if-range': '"something else"' })).status, 200);
  });

  describe('several ranges', () => {
    const size = () => blob.bytes.length;
    const wanted = () => [
      [3 * MiB, 3 * MiB + 99],
      [0, 99],
      [100, 199],
      [size() - 10, size() - 1],
    ];
    const header = () =>
      `bytes=${wanted()
        .map((range) => range.join('-'))
        .join(',')}`;

    function assertParts(reply: Reply): void {
      assert.equal(reply.status, 206);
      assert.equal(Number(reply.headers['content-length']), reply.body.length);
      const [, boundary] =
        /^multipart\/byteranges; boundary=(\w+)$/.exec(reply.headers['content-type'] ?? '') ?? [];
      const parts = reply.body.toString('latin1').split(new RegExp(`(?:\r\n)?--${boundary!}(?:--)?\r\n`));
      assert.deepEqual([parts[0], parts.at(-1)], ['', '']);
      assert.equal(parts.length, 2 + wanted().length);
      wanted().forEach(([first, last], i) => {
        const [head = '', body = ''] = parts[i + 1]!.split(/\r\n\r\n(.*)$/s);
        assert.match(head, new RegExp(`^Content-Range: bytes ${first!}-${last!}/${size()}$`, 'm'));
        assert.match(head, /^Content-Type: application\/octet-stream$/m);
        sameBytes(Buffer.from(body, 'latin1'), blob.bytes.subarray(first, last! + 1));
      });
    }

    test('cold, while it is arriving, and stored: a part for each, in order', async () => {
      upstream.script('blob', sendBlob(blob, { bytesPerSecond: 20 * MiB }));
      const [cold, joined] = await Promise.all([ask(header()), ask(header())]);
      assertParts(cold);
      assertParts(joined);
      await until(stored, 'the whole is stored');
      const hit = await ask(header());
      assert.equal(hit.headers['x-cache'], 'hit');
      assertParts(hit);
    });

    test('what is not there is left out, and nothing of it is 416', async () => {
      await mirror.get(path);
      const one = await ask(`bytes=0-4,${size()}-`);
      assert.match(one.body.toString('latin1'), /bytes 0-4/);
      assert.match(one.headers['content-type'] ?? '', /^multipart/);
      assert.equal((await ask(`bytes=${size()}-,-0`)).status, 416);
    });

    test('too many, and floods that overlap, are 400', async () => {
      await mirror.get(path);
      upstream.forget();
      for (const value of [
        `bytes=${Array.from({ length: 10_000 }, (_, i) => `${i * 3}-${i * 3}`).join(',')}`,
        `bytes=${Array.from({ length: 100 }, () => '0-').join(',')}`,
      ]) {
        const reply = await ask(value);
        assert.equal(reply.status, 400);
        assert.equal(errorOf(reply).code, 'RANGE_INVALID');
      }
      assert.equal(upstream.calls.length, 0);
    });

    test('a client that leaves in the middle disturbs nobody', async () => {
      await mirror.get(path);
      const value = `bytes=0-${8 * MiB},${9 * MiB}-${15 * MiB}`;
      await mirror.get(path, { headers: { range: value }, onData: (_chunk, total) => total < MiB });
      assertParts(await ask(header()));
    });
  });

  test('an upstream that takes no ranges: right all the same', async () => {
    upstream.script('blob', sendBlob(blob, { ignoresRange: true }));
    const reply = await ask(`bytes=${15 * MiB}-${16 * MiB - 1}`);
    assert.equal(reply.status, 206);
    sameBytes(reply.body, blob.bytes.subarray(15 * MiB, 16 * MiB));
    assert.equal(upstream.count('blob'), 1);
  });

  test('a range of a small blob fetches and verifies the whole', async () => {
    const small = randomBlob(5000);
    upstream.addBlob('library/x', small);
    const reply = await mirror.get(`/v2/library/x/blobs/${small.digest}`, {
      headers: { range: 'bytes=10-19' },
    });
    assert.equal(reply.status, 206);
    sameBytes(reply.body, small.bytes.subarray(10, 20));
    const wrong = randomBlob(5000);
    upstream.addBlob('library/x', { digest: wrong.digest, bytes: small.bytes });
    const refused = await mirror.get(`/v2/library/x/blobs/${wrong.digest}`, {
      headers: { range: 'bytes=10-19' },
    });
    assert.equal(refused.status, 502);
  });
});

describe('layers fetched ahead', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const layers = Array.from({ length: 6 }, () => largeBlob(400_000));
  const image = imageOf(layers);
  const used = 'layercache_prefetched_bytes_total{used="yes"}';

  async function start(fetch: object = {}): Promise<void> {
    upstream = await Upstream.start();
    for (const repo of ['library/x', 'library/y']) upstream.addImage(repo, image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url, config: { fetch } });
  }

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const get = (i: number, repo = 'library/x', headers = {}): Promise<Reply> =>
    mirror.get(`/v2/${repo}/blobs/${layers[i]!.digest}`, { headers });

  test('the first miss of a layer brings those above it, once, and not those below', async () => {
    await start();
    await mirror.get('/v2/library/x/manifests/1');
    await get(2);
    await until(() => upstream.count('blob') === 4, 'those above are fetched');
    await mirror.fillsEnded();
    for (const i of [3, 4, 5]) assert.equal((await get(i)).headers['x-cache'], 'hit');
    assert.equal(upstream.count('blob'), 4);
    assert.equal(await mirror.metric(used), 3 * 400_000);
    assert.equal((await get(0)).headers['x-cache'], 'miss');
    await until(() => upstream.count('blob') === 6, 'the one between is fetched');
  });

  test('nothing is fetched for who has not got the manifest there, for a range, or when it is off', async () => {
    await start();
    await get(0);
    await mirror.get('/v2/library/x/manifests/1');
    await get(1, 'library/y');
    await get(2, 'library/x', { range: 'bytes=0-99999' });
    await mirror.fillsEnded();
    assert.equal(upstream.count('blob'), 3);
    await mirror.close();
    await upstream.stop();
    await start({ prefetch: 'off' });
    await mirror.get('/v2/library/x/manifests/1');
    await get(0);
    await mirror.fillsEnded();
    assert.equal(upstream.count('blob'), 1);
  });

  test('an upstream that fails for what is fetched ahead disturbs nobody', async () => {
    await start();
    upstream.script('blob', (_call, _req, res) => void res.writeHead(404).end(), {
      match: ({ reference }) => reference !== layers[0]!.digest,
    });
    await mirror.get('/v2/library/x/manifests/1');
    sameBytes((await get(0)).body, layers[0]!.bytes);
    await mirror.fillsEnded();
    upstream.behave();
    sameBytes((await get(1)).body, layers[1]!.bytes);
  });
});
