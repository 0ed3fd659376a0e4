import assert from 'node:assert/strict';
import { open as openFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sendBlob } from '../support/bodies.ts';
import { ask, sameBytes, type Reply } from '../support/http.ts';
import { imageOf, largeBlob, type Blob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { rentRegistries, type Rented } from '../support/rented.ts';
import { Upstream } from '../support/upstream.ts';

const MiB = 1024 * 1024;
const login = { username: 'u', password: 'p' };

describe('registries that do not trust each other share no bytes that are not verified', () => {
  let owner: Upstream;
  let second: Upstream;
  let evil: Upstream;
  let rented: Rented;
  let mirror: TestMirror;
  let layer: Blob;

  beforeEach(async () => {
    layer = largeBlob(6 * MiB);
    [owner, second, evil] = await Promise.all([
      Upstream.start({ auth: 'bearer', login }),
      Upstream.start(),
      Upstream.start(),
    ]);
    const hosts = { 'evil.rented.example.org': evil, 'other.rented.example.org': second };
    rented = await rentRegistries('*.rented.example.org', hosts);
    owner.addBlob('acme/private', layer);
    mirror = await TestMirror.start({
      upstream: owner.url,
      upstreamConfig: { accounts: [login] },
      upstreams: [{ registry: 'second.example', url: second.url }, rented.config],
      config: {
        fetch: { completeRanges: false, giveUpAfter: '300ms', firstByteTimeout: '3s', idleTimeout: '1s' },
      },
    });
    mirror.clock.run();
  });
  afterEach(async () => {
    await mirror.close();
    await rented.close();
    await Promise.all([owner.stop(), second.stop(), evil.stop()]);
  });

  const ownPath = (): string => `/v2/acme/private/blobs/${layer.digest}`;
  const evilPath = (): string => `/v2/x/y/blobs/${layer.digest}?ns=evil.rented.example.org`;
  const ranged = (path: string, range: string): Promise<Reply> =>
    mirror.get(path, { headers: { range: `bytes=${range}` } });

  /** What a client that only wanted a part leaves. */
  async function leavePartial(path: string): Promise<void> {
    assert.equal((await ranged(path, `0-${4 * MiB - 1}`)).status, 206);
    await mirror.fillsEnded();
    assert.ok((await mirror.metric('layercache_fill_bytes_pending')) >= 4 * MiB);
  }

  /** It has everything, and gives zeros. */
  function evilHasZeros(): void {
    evil.addBlob('x/y', layer);
    evil.script('blob', sendBlob(layer, { bytes: Buffer.alloc(layer.bytes.length) }), {
      match: ({ method }) => method === 'GET',
    });
  }

  test('what is left of a private blob is not shown to a rented registry', async () => {
    await leavePartial(ownPath());
    evilHasZeros();
    for (const range of ['0-999999', '1000000-1999999', '0-0', '-1000']) {
      const { body } = await ranged(evilPath(), range);
      assert.ok(body.length === 0 || body.equals(Buffer.alloc(body.length)), `${range}: private bytes`);
    }
    sameBytes((await mirror.get(ownPath())).body, layer.bytes);
  });

  test('a range of what a rented registry drips is not what the owner gets', async () => {
    evil.addBlob('x/y', layer);
    const zeros = Buffer.alloc(layer.bytes.length);
    evil.script('blob', sendBlob(layer, { bytes: zeros, stallAfter: MiB }), {
      match: ({ method }) => method === 'GET',
    });
    const started = Promise.withResolvers<undefined>();
    const evils = mirror.get(evilPath(), { onHeaders: () => started.resolve(undefined) });
    await started.promise;
    const range = await ranged(ownPath(), '0-999999');
    assert.equal(range.status, 206);
    sameBytes(range.body, layer.bytes.subarray(0, 1_000_000));
    const whole = await mirror.get(ownPath());
    sameBytes(whole.body, layer.bytes);
    assert.ok((await evils.catch(() => undefined))?.broken !== false);
  });

  test('garbage that a rented registry has left does not break the owner’s pull', async () => {
    evilHasZeros();
    await leavePartial(evilPath());
    sameBytes((await ranged(ownPath(), '0-999999')).body, layer.bytes.subarray(0, 1_000_000));
    sameBytes((await mirror.get(ownPath())).body, layer.bytes);
  });

  test('a registry that is slow does not hold up another one’s clients', async () => {
    second.addBlob('org/app', layer);
    second.script('blob', () => undefined, { match: ({ method }) => method === 'GET' });
    const slow = mirror.get(`/v2/second.example/org/app/blobs/${layer.digest}`);
    slow.catch(() => undefined);
    await until(() => second.count('blob') > 0, 'the slow one is asked');
    const before = performance.now();
    sameBytes((await mirror.get(ownPath())).body, layer.bytes);
    assert.ok(performance.now() - before < 2000, 'its own upstream is well');
    await slow.catch(() => undefined);
  });

  test('a rented registry that says it has what another one’s clients pulled through it gains nothing', async () => {
    // Its own fill is under way, and it says yes for another repo of its own meanwhile.
    evil.addBlob('x/y', layer);
    evil.addBlob('x/z', layer);
    const { promise: go, resolve: open } = Promise.withResolvers<undefined>();
    evil.script(
      'blob',
      async (_call, _req, res) => {
        res.writeHead(200, { 'content-length': layer.bytes.length });
        res.write(Buffer.alloc(MiB));
        await go;
        res.destroy();
      },
      { match: ({ method }) => method === 'GET' },
    );
    const started = Promise.withResolvers<undefined>();
    const first = mirror.get(evilPath(), { onHeaders: () => started.resolve(undefined) });
    await started.promise;
    const z = evilPath().replace('x/y', 'x/z');
    const joined = await ranged(z, '0-9999');
    assert.equal(joined.headers['x-cache'], 'joined', 'its own bytes it may have');
    sameBytes(joined.body, Buffer.alloc(10_000));
    sameBytes((await mirror.get(ownPath())).body, layer.bytes);
    open(undefined);
    await first.catch(() => undefined);
    for (const path of [z, evilPath()])
      for (const range of ['0-9999', '1000000-1009999']) {
        const reply = await ranged(path, range);
        assert.ok(!reply.body.includes(layer.bytes.subarray(100, 200)), `${path} ${range}`);
      }
  });

  test('a rented registry that breaks off while it has to show stored bytes is said to be down', async () => {
    sameBytes((await mirror.get(ownPath())).body, layer.bytes);
    await mirror.fillsEnded();
    evil.script('blob', sendBlob(layer, { cutAfter: 10 }), { match: ({ method }) => method === 'GET' });
    const reply = await mirror.get(evilPath());
    assert.equal(reply.status, 503, reply.body.toString());
  });

  test('what a rented registry only says that it will send pushes nothing out', async () => {
    const small = Array.from({ length: 10 }, () => largeBlob(2 * MiB));
    for (const blob of small) {
      owner.addBlob('acme/private', blob);
      sameBytes((await mirror.get(`/v2/acme/private/blobs/${blob.digest}`)).body, blob.bytes);
    }
    await until(async () => (await mirror.files('blobs')).length === small.length, 'all are stored');
    mirror.reconfigure({ config: { store: { maxBytes: 24 * MiB }, fetch: { firstByteTimeout: '2s' } } });
    await mirror.restart();
    evil.script('blob', ({ method }, _req, res) => {
      res.writeHead(200, { 'content-length': 20 * MiB });
      if (method === 'HEAD') res.end();
      else res.write('x');
    });
    const claimed = mirror.get(evilPath(), { onData: () => false });
    await claimed.catch(() => undefined);
    assert.equal((await mirror.files('blobs')).length, small.length);
  });

  test('two repos of one rented registry share what it brings, and each is proven', async () => {
    for (const repo of ['x/y', 'x/z']) evil.addBlob(repo, layer);
    const paths = ['x/y', 'x/z', 'x/secret'].map((repo) => evilPath().replace('x/y', repo));
    const replies = await Promise.all(paths.map((path) => mirror.get(path)));
    assert.deepEqual(
      replies.map(({ status }) => status),
      [200, 200, 404],
    );
    for (const reply of replies.slice(0, 2)) sameBytes(reply.body, layer.bytes);
    assert.equal(evil.blobBytes, layer.bytes.length);
    assert.equal((await mirror.get(paths[2]!)).status, 404);
  });

  test('a damaged blob that is pinned for a rented registry comes back as its own', async () => {
    const image = imageOf([largeBlob(2 * MiB)]);
    evil.addImage('x/y', image, '1');
    await mirror.stop();
    mirror.reconfigure({ config: { store: { pins: ['evil.rented.example.org/x/y:1'] } } });
    await mirror.start();
    const held = image.layers[0]!;
    const path = `/v2/x/y/blobs/${held.digest}?ns=evil.rented.example.org`;
    for (const each of [path, `/v2/x/y/manifests/1?ns=evil.rented.example.org`, path])
      assert.equal((await mirror.get(each)).status, 200);
    await until(async () => (await mirror.metric('layercache_store_pinned_bytes')) > MiB, 'it is pinned');
    await mirror.restart();
    // From now on it has nothing but zeros, whoever finds the damage.
    evil.forget();
    evil.script('blob', sendBlob(held, { bytes: Buffer.alloc(held.bytes.length) }), {
      match: ({ method }) => method === 'GET',
    });
    const file = (await mirror.files()).find(({ path: name }) => name.endsWith(held.digest.slice(7)))!;
    const handle = await openFile(join(mirror.dataDirectory, file.path), 'r+');
    await handle.truncate(1000);
    await handle.close();
    await ask(`${mirror.adminUrl}/api/quarantine`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ digests: [held.digest] }),
    });
    await until(() => evil.count('blob') > 0, 'it is fetched again');
    await mirror.fillsEnded();
    owner.addBlob('acme/private', held);
    const owned = `/v2/acme/private/blobs/${held.digest}`;
    sameBytes((await mirror.get(owned)).body, held.bytes);
    await mirror.fillsEnded();
    const reply = await mirror.get(path);
    assert.equal(reply.status, 502, 'what it says without showing it proves nothing');
  });
});
