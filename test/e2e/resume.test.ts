import assert from 'node:assert/strict';
import { readdir, readlink } from 'node:fs/promises';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sendBlob } from '../support/bodies.ts';
import { errorOf, sameBytes } from '../support/http.ts';
import { imageOf, largeBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream, type Call, type Script, type UpstreamOptions } from '../support/upstream.ts';

const MiB = 1024 * 1024;

describe('resumed fills', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const blob = largeBlob(6 * MiB + 123);
  const path = `/v2/library/x/blobs/${blob.digest}`;

  async function start(options: UpstreamOptions = {}, fetch: object = {}): Promise<void> {
    upstream = await Upstream.start(options);
    upstream.addBlob('library/x', blob);
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { fetch: { spanBytes: '1MiB', idleTimeout: '200ms', ...fetch } },
    });
  }

  beforeEach(() => start());

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  async function restart(options: UpstreamOptions = {}, fetch: object = {}): Promise<void> {
    await mirror.close();
    await upstream.stop();
    await start(options, fetch);
  }

  const stored = async (): Promise<boolean> => (await mirror.files('blobs')).length === 1;

  test('six cuts with other ETags, two stalls, two 503: one request, right, hardly a byte twice', async () => {
    let n = 0;
    const etag = (): Record<string, string> => ({ etag: `"node-${n++}"` });
    upstream.script('blob', (_call, _req, res) => void res.writeHead(503).end(), { times: 1 });
    for (let i = 0; i < 6; i++)
      upstream.script('blob', sendBlob(blob, { cutAfter: 300_000 + i, headers: etag() }), { times: 1 });
    for (let i = 0; i < 2; i++)
      upstream.script('blob', sendBlob(blob, { stallAfter: 200_000, headers: etag() }), { times: 1 });
    upstream.script('blob', (_call, _req, res) => void res.writeHead(503).end(), { times: 1 });
    const reply = await mirror.get(path);
    assert.equal(reply.status, 200);
    assert.equal(reply.broken, false);
    sameBytes(reply.body, blob.bytes);
    assert.ok(upstream.blobBytes < 1.05 * blob.bytes.length, `${upstream.blobBytes} bytes`);
    await until(stored, 'it is stored');
  });

  test('a signed link that lives for one span is replaced; a good one serves all spans', async () => {
    await restart({ cdn: true });
    sameBytes((await mirror.get(path)).body, blob.bytes);
    assert.equal(upstream.count('blob'), 1, 'one redirect');
    await restart({ cdn: true });
    upstream.script('cdn', (_call, _req, res) => void res.writeHead(403).end(), {
      match: (call) => upstream.calls.filter(({ url }) => url === call.url).length % 2 === 0,
    });
    const reply = await mirror.get(path);
    assert.equal(reply.broken, false);
    sameBytes(reply.body, blob.bytes);
    assert.equal(upstream.blobBytes, blob.bytes.length);
    assert.ok(upstream.count('cdn', { status: 403 }) > 1);
  });

  test('an upstream that takes no ranges is read again from the start, and what is known is passed over', async () => {
    upstream.script('blob', sendBlob(blob, { ignoresRange: true, cutAfter: 3 * MiB }), { times: 1 });
    upstream.script('blob', sendBlob(blob, { ignoresRange: true }));
    const reply = await mirror.get(path);
    assert.equal(reply.broken, false);
    sameBytes(reply.body, blob.bytes);
    assert.equal(upstream.count('blob'), 2);
    assert.equal(
      upstream.calls.filter(({ kind }) => kind === 'blob')[1]?.headers.range,
      `bytes=${3 * MiB}-${blob.bytes.length - 1}`,
    );
  });

  test('an unknown size that breaks off is resumed', async () => {
    upstream.script(
      'blob',
      (_call, req, res) => {
        res.writeHead(200);
        res.write(blob.bytes.subarray(0, 2 * MiB), () => req.socket.destroy());
      },
      { times: 1 },
    );
    const reply = await mirror.get(path);
    assert.equal(reply.broken, false);
    sameBytes(reply.body, blob.bytes);
    assert.equal(upstream.calls.filter(({ kind }) => kind === 'blob')[1]?.headers.range, `bytes=${2 * MiB}-`);
  });

  test('an unknown size that ends before what has come already is no end', async () => {
    const answer = (from: number, to: number, isCut: boolean): Script => {
      return (_call, req, res) => {
        res.writeHead(200);
        res.write(blob.bytes.subarray(from, to), () => (isCut ? req.socket.destroy() : res.end()));
      };
    };
    upstream.script('blob', answer(0, 5 * MiB, true), { times: 1 });
    upstream.script('blob', answer(0, 3 * MiB, false), { times: 2 });
    const reply = await mirror.get(path);
    assert.equal(reply.broken, false);
    sameBytes(reply.body, blob.bytes);
    assert.ok(upstream.count('blob') < 8);
  });

  const wrong: Record<string, Script> = {
    'another total': (_call, req, res) => {
      const [, first, last] = /(\d+)-(\d+)/.exec(req.headers.range ?? '') ?? [];
      const length = Number(last) - Number(first) + 1;
      res.writeHead(206, {
        'content-length': length,
        'content-range': `bytes ${first}-${last}/${blob.bytes.length + 1}`,
      });
      res.end(Buffer.alloc(length, 'x'));
    },
    'another range': (_call, _req, res) => {
      res.writeHead(206, { 'content-length': 10, 'content-range': `bytes 0-9/${blob.bytes.length}` });
      res.end('xxxxxxxxxx');
    },
    'a web page': (_call, _req, res) =>
      void res.writeHead(200, { 'content-type': 'text/html' }).end('<html>'),
    'a coding': (_call, _req, res) => void res.writeHead(206, { 'content-encoding': 'gzip' }).end('xxx'),
    '429': (_call, _req, res) => void res.writeHead(429).end(),
    'an early end': sendBlob(blob, { cutAfter: 5 }),
  };
  for (const [name, script] of Object.entries(wrong)) {
    test(`${name} on a later span never mixes in`, async () => {
      // Each limit is waited for longer than the one before.
      const times = name === '429' ? 1 : 3;
      mirror.clock.run();
      let spoilt = 0;
      const later = (call: Call): boolean => !call.headers.range?.startsWith('bytes=0-') && ++spoilt <= times;
      upstream.script('blob', script, { match: later });
      const reply = await mirror.get(path);
      assert.equal(reply.broken, false);
      sameBytes(reply.body, blob.bytes);
    });
  }

  test('when nothing comes by any try, readers are broken off, and the next one goes on from there', async () => {
    upstream.script('blob', sendBlob(blob, { cutAfter: 1.5 * MiB }), { times: 1 });
    upstream.script('blob', sendBlob(blob), { times: 2 });
    upstream.script('blob', (_call, req) => void req.socket.destroy());
    const readers = [mirror.get(path), mirror.get(path)];
    await until(() => upstream.count('blob') > 6, 'it has tried often');
    const later = setInterval(() => mirror.clock.advance(31_000), 20);
    for (const reply of await Promise.all(readers)) assert.ok(reply.broken);
    clearInterval(later);
    await mirror.fillsEnded();
    assert.equal((await mirror.files('ingest')).length, 1);
    const pending = await mirror.metric('layercache_fill_bytes_pending');
    assert.ok(pending > MiB, `${pending} bytes`);
    assert.ok((await mirror.metric('layercache_store_bytes')) >= pending, 'they count against the cap');
    upstream.behave();
    mirror.clock.advance(5000);
    const before = upstream.blobBytes;
    sameBytes((await mirror.get(path)).body, blob.bytes);
    assert.equal(upstream.blobBytes - before, blob.bytes.length - pending);
    await until(stored, 'it is stored');
    assert.deepEqual(await mirror.files('ingest'), []);
  });

  test('what a stopped mirror has of a blob is not fetched again', async () => {
    upstream.script('blob', sendBlob(blob, { bytesPerSecond: 4 * MiB }));
    const reading = mirror.get(path, { onData: (_chunk, total) => total < 2 * MiB });
    assert.ok((await reading).broken);
    await mirror.restart();
    const pending = await mirror.metric('layercache_fill_bytes_pending');
    assert.ok(pending >= 2 * MiB, `${pending} bytes`);
    upstream.behave();
    const before = upstream.blobBytes;
    const reply = await mirror.get(path);
    sameBytes(reply.body, blob.bytes);
    assert.equal(upstream.blobBytes - before, blob.bytes.length - pending);
  });

  test('what nobody came back for is swept after a day, and makes room for what is asked for', async () => {
    await mirror.close();
    mirror = await TestMirror.start({ upstream: upstream.url, config: { store: { maxBytes: '8MiB' } } });
    const leave = async (): Promise<void> => {
      upstream.script('blob', sendBlob(blob, { bytesPerSecond: 4 * MiB }));
      await mirror.get(path, { onData: (_chunk, total) => total < 2 * MiB });
      await mirror.stop();
      upstream.behave();
    };
    await leave();
    mirror.clock.advance(25 * 60 * 60 * 1000);
    await mirror.start();
    assert.deepEqual(await mirror.files('ingest'), []);
    assert.equal(await mirror.metric('layercache_store_bytes'), 0);
    await leave();
    await mirror.start();
    assert.equal((await mirror.files('ingest')).length, 1);
    const other = largeBlob(7 * MiB);
    upstream.addBlob('library/x', other);
    sameBytes((await mirror.get(`/v2/library/x/blobs/${other.digest}`)).body, other.bytes);
    await until(stored, 'the other one is stored');
    assert.deepEqual(await mirror.files('ingest'), []);
  });

  test('a mismatch after several spans breaks the reader, drops everything, and is told', async () => {
    const spoilt = Buffer.from(blob.bytes);
    spoilt[4 * MiB] = (spoilt[4 * MiB] ?? 0) ^ 1;
    upstream.script('blob', sendBlob(blob, { bytes: spoilt }));
    const reply = await mirror.get(path);
    assert.ok(reply.broken && reply.body.length < blob.bytes.length);
    await until(async () => (await mirror.files('ingest')).length === 0, 'the ingest is gone');
    assert.ok((await mirror.metric('layercache_faults_total{fault="digest-mismatch"}')) > 0);
    await until(() => /digest-mismatch.*fill failed/.test(mirror.log), 'the log tells');
    upstream.behave();
    sameBytes((await mirror.get(path)).body, blob.bytes);
  });

  test('what is left of a private blob is nobody else’s', async () => {
    await mirror.close();
    await upstream.stop();
    upstream = await Upstream.start({ auth: 'basic', login: { username: 'u', password: 'p' } });
    upstream.addBlob('acme/x', blob);
    mirror = await TestMirror.start({
      upstream: upstream.url,
      upstreamConfig: { accounts: [{ username: 'u', password: 'p' }] },
      config: { fetch: { spanBytes: '1MiB' } },
    });
    upstream.script('blob', sendBlob(blob, { bytesPerSecond: 4 * MiB }));
    const mine = `/v2/acme/x/blobs/${blob.digest}`;
    await mirror.get(mine, { onData: (_chunk, total) => total < 3 * MiB });
    await mirror.restart();
    upstream.behave();
    const reply = await mirror.get(`/v2/acme/y/blobs/${blob.digest}`, { headers: { range: 'bytes=0-99' } });
    assert.equal(reply.status, 404);
    assert.equal(errorOf(reply).code, 'BLOB_UNKNOWN');
    const [again] = [await mirror.get(mine, { headers: { range: 'bytes=0-99' } })];
    assert.equal(again.status, 206);
    sameBytes(again.body, blob.bytes.subarray(0, 100));
  });

  test('a manifest that names what is left of a private blob gives nobody a byte of it', async () => {
    await mirror.close();
    await upstream.stop();
    upstream = await Upstream.start({ auth: 'basic', login: { username: 'u', password: 'p' } });
    const own = largeBlob(200_000);
    const image = imageOf([own, blob]);
    upstream.addImage('acme/y', image, '1');
    upstream.script('blob', (_call, _req, res) => void res.writeHead(404).end(), {
      match: ({ repo, reference }) => repo === 'acme/y' && reference === blob.digest,
    });
    upstream.addBlob('acme/x', blob);
    mirror = await TestMirror.start({
      upstream: upstream.url,
      upstreamConfig: { accounts: [{ username: 'u', password: 'p' }] },
      config: { fetch: { spanBytes: '1MiB' }, tags: { negativeTtl: 'off' } },
    });
    upstream.script('blob', sendBlob(blob, { bytesPerSecond: 4 * MiB }), {
      match: ({ repo }) => repo === 'acme/x',
    });
    await mirror.get(`/v2/acme/x/blobs/${blob.digest}`, { onData: (_chunk, total) => total < 3 * MiB });
    await mirror.restart();
    await mirror.get('/v2/acme/y/manifests/1');
    const replies = await Promise.all([
      mirror.get(`/v2/acme/y/blobs/${own.digest}`),
      ...Array.from({ length: 5 }, () =>
        mirror.get(`/v2/acme/y/blobs/${blob.digest}`, { headers: { range: 'bytes=0-99999' } }),
      ),
    ]);
    assert.deepEqual(
      replies.map(({ status }) => status),
      [200, 404, 404, 404, 404, 404],
    );
  });

  test('no handle stays open when all is over', async () => {
    upstream.script('blob', sendBlob(blob, { cutAfter: 700_000 }), { times: 5 });
    sameBytes((await mirror.get(path)).body, blob.bytes);
    await until(stored, 'it is stored');
    const open = async (): Promise<string[]> => {
      const fds = await readdir('/proc/self/fd');
      const targets = await Promise.all(fds.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')));
      return targets.filter(
        (target) => /\/(ingest|blobs)\//.test(target) && target.startsWith(mirror.directory),
      );
    };
    await until(async () => (await open()).length === 0, 'all files are closed');
  });
});
