import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { after, before, describe, test } from 'node:test';
import { errorOf, sameBytes } from '../support/http.ts';
import { imageOf, manifestOf, ociManifest, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

describe('registry API', () => {
  const blob = randomBlob(2048);
  const large = randomBlob(300_000);
  const image = imageOf([blob, large]);
  const path = `/v2/library/x/blobs/${blob.digest}`;
  const tag = '/v2/library/x/manifests/1';
  let upstream: Upstream;
  let mirror: TestMirror;

  before(async () => {
    upstream = await Upstream.start();
    upstream.addImage('library/x', image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url });
    for (const each of [tag, path, `/v2/library/x/blobs/${large.digest}`]) {
      assert.equal((await mirror.get(each)).status, 200);
    }
    await until(async () => (await mirror.files('blobs')).length === 3, 'all is stored');
    upstream.forget();
  });

  after(async () => {
    await mirror.close();
    await upstream.stop();
  });

  test('the base answers without the upstream', async () => {
    for (const [method, target] of [
      ['GET', '/v2/'],
      ['GET', '/v2'],
      ['HEAD', '/v2/'],
    ] as const) {
      const reply = await mirror.get(target, { method });
      assert.equal(reply.status, 200);
      assert.equal(reply.headers['docker-distribution-api-version'], 'registry/2.0');
      assert.equal(reply.headers['content-type'], 'application/json');
      assert.equal(reply.headers['www-authenticate'], undefined);
      assert.equal(reply.body.toString(), method === 'HEAD' ? '' : '{}');
    }
    assert.equal(upstream.calls.length, 0);
  });

  test('a manifest: exact bytes, bare type, digest, quoted ETag, real length on HEAD', async () => {
    for (const reference of ['1', image.manifest.digest]) {
      const get = await mirror.get(`/v2/library/x/manifests/${reference}`);
      const head = await mirror.head(`/v2/library/x/manifests/${reference}`);
      for (const { headers } of [get, head]) {
        assert.equal(headers['content-type'], ociManifest);
        assert.equal(headers['docker-content-digest'], image.manifest.digest);
        assert.equal(headers.etag, `"${image.manifest.digest}"`);
        assert.equal(headers['content-length'], String(image.manifest.bytes.length));
        assert.equal(headers['x-cache'], 'hit');
        for (const name of ['x-powered-by', 'set-cookie', 'content-encoding', 'transfer-encoding']) {
          assert.equal(headers[name], undefined, name);
        }
      }
      sameBytes(get.body, image.manifest.bytes);
      assert.equal(head.body.length, 0);
    }
  });

  test('a blob: octets, length, digest, ranges accepted, coding ignored', async () => {
    const reply = await mirror.get(path, { headers: { 'accept-encoding': 'zstd;q=1.0, gzip;q=0.8' } });
    sameBytes(reply.body, blob.bytes);
    assert.equal(reply.headers['content-type'], 'application/octet-stream');
    assert.equal(reply.headers['accept-ranges'], 'bytes');
    assert.equal(reply.headers['docker-content-digest'], blob.digest);
    assert.equal(reply.headers['content-encoding'], undefined);
  });

  for (const [title, of] of [
    ['small', blob],
    ['large', large],
  ] as const) {
    test(`ranges of a ${title} stored blob`, async () => {
      const size = of.bytes.length;
      const ask = (range: string, headers = {}) =>
        mirror.get(`/v2/library/x/blobs/${of.digest}`, { headers: { range, ...headers } });
      for (const [range, start, end] of [
        ['bytes=500-1499', 500, 1500],
        ['bytes=500-', 500, size],
        ['bytes=-500', size - 500, size],
        [`bytes=2000-${size + 5}`, 2000, size],
        ['bytes=0-0', 0, 1],
        ['bytes=0-', 0, size],
      ] as const) {
        const reply = await ask(range);
        assert.equal(reply.status, 206, range);
        assert.equal(reply.headers['content-range'], `bytes ${start}-${end - 1}/${size}`);
        assert.equal(reply.headers['content-length'], String(end - start));
        sameBytes(reply.body, of.bytes.subarray(start, end));
      }
      for (const range of ['bytes=500-0', `bytes=${size}-`, 'bytes=-0']) {
        const reply = await ask(range);
        assert.equal(reply.status, 416, range);
        assert.equal(reply.headers['content-range'], `bytes */${size}`);
        assert.equal(reply.headers['x-cache'], undefined);
      }
      assert.equal((await ask('bytes=0-1,5-6')).status, 206);
      assert.equal((await ask('items=0-1')).status, 200);
      assert.equal((await ask('bytes=0-1', { 'if-range': `"${of.digest}"` })).status, 206);
      for (const other of ['"other"', `W/"${of.digest}"`, 'Sat, 01 Jan 2026 00:00:00 GMT']) {
        assert.equal((await ask('bytes=0-1', { 'if-range': other })).status, 200);
      }
      assert.equal(
        (await mirror.head(`/v2/library/x/blobs/${of.digest}`, { range: 'bytes=0-1' })).status,
        200,
      );
    });
  }

  test('If-None-Match: quoted, bare, weak, in a list, any', async () => {
    const { digest } = image.manifest;
    for (const method of ['GET', 'HEAD']) {
      for (const value of [`"${digest}"`, digest, `W/"${digest}"`, `"x", "${digest}"`, '*']) {
        const reply = await mirror.get(tag, { method, headers: { 'if-none-match': value } });
        assert.equal(reply.status, 304, value);
        assert.equal(reply.body.length, 0);
        assert.equal(reply.headers.etag, `"${digest}"`);
        assert.equal(reply.headers['docker-content-digest'], digest);
      }
      assert.equal((await mirror.get(tag, { method, headers: { 'if-none-match': '"x"' } })).status, 200);
    }
    const absent = `/v2/library/x/manifests/sha256:${'0'.repeat(64)}`;
    assert.equal((await mirror.get(absent, { headers: { 'if-none-match': '*' } })).status, 404);
  });

  test('write methods are 405 on every route, and change nothing', async () => {
    upstream.forget();
    const uploads = [
      '/v2/library/x/blobs/uploads/',
      '/v2/library/x/blobs/uploads/1',
      '/v2/library/x/tags/list',
    ];
    for (const target of [tag, path, '/v2/', ...uploads]) {
      for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'TRACE']) {
        const reply = await mirror.get(target, { method, body: method === 'PUT' ? 'some body' : '' });
        assert.equal(reply.status, 405, `${method} ${target}`);
        assert.equal(errorOf(reply).code, 'UNSUPPORTED');
        assert.equal(reply.headers.allow, 'GET, HEAD');
      }
    }
    assert.equal((await mirror.get(path)).headers['x-cache'], 'hit');
    assert.equal(upstream.calls.length, 0);
  });

  test('what is no route, and what tries to escape, is refused as OCI JSON without the upstream', async () => {
    upstream.forget();
    const targets = [
      ['/v2/library/x', 404],
      ['http://', 404],
      ['/v2/_catalog', 404],
      ['/v2/_oci/ext/discover', 404],
      ['/v2/../../etc/passwd', 404],
      ['/v2/a/blobs/..%2f..%2fx', 404],
      ['/v2/%2e%2e/%2e%2e/manifests/latest', 400],
      ['/v2/a/../b/manifests/latest', 400],
      ['/v2/a//b/manifests/latest', 400],
      ['/v2/UPPER/manifests/latest', 400],
      ['/v2/a\\b/manifests/latest', 400],
      [`/v2/a/blobs/sha256:${'a'.repeat(64)}/../y`, 404],
      ['/v2/a/blobs/sha256:../../x', 404],
      ['/v2/a/manifests/sha256:totallywrong', 400],
      ['/v2/a/manifests/.INVALID_MANIFEST_NAME', 404],
      ['/v2/a/manifests/latest?ns=evil.example', 404],
      ['/v2/a/manifests/latest?ns=169.254.169.254', 404],
      [`/v2/${'a/'.repeat(3000)}manifests/latest`, 400],
    ] as const;
    for (const [target, status] of targets) {
      const reply = await mirror.get('/', { target });
      assert.equal(reply.status, status, target);
      assert.match(errorOf(reply).code, /^[A-Z_]+$/);
      assert.equal(reply.headers['content-type'], 'application/json');
      const head = await mirror.get('/', { target, method: 'HEAD' });
      assert.equal(head.status, status, `HEAD ${target}`);
      assert.equal(head.body.length, 0);
    }
    assert.equal(upstream.calls.length, 0);
  });

  test('ns: the name and the aliases of a configured upstream, echoed', async () => {
    for (const ns of ['docker.io', 'index.docker.io', 'registry-1.docker.io']) {
      const reply = await mirror.get(`${tag}?ns=${ns}`);
      assert.equal(reply.status, 200);
      assert.equal(reply.headers['oci-namespace'], ns);
      assert.equal(reply.headers['x-cache'], 'hit');
    }
  });

  test('one connection carries all kinds of answers, pipelined too', async () => {
    const socket = connect(mirror.service.address.port, '127.0.0.1');
    const targets = [`HEAD ${tag}`, `GET ${path}`, 'GET /v2/nothing', `GET ${tag}`];
    const requests = targets.map((target, i) => {
      const last = i === targets.length - 1;
      return `${target} HTTP/1.1\r\nHost: x\r\n${last ? 'Connection: close\r\n' : ''}\r\n`;
    });
    socket.write(requests.join(''));
    const answer = await text(socket.setEncoding('latin1'));
    assert.deepEqual(answer.match(/HTTP\/1\.1 \d+/g), [
      'HTTP/1.1 200',
      'HTTP/1.1 200',
      'HTTP/1.1 404',
      'HTTP/1.1 200',
    ]);
    assert.ok(answer.includes(blob.bytes.toString('latin1')));
    assert.ok(answer.endsWith(image.manifest.bytes.toString('latin1')));
  });
});

test('manifests that are not what they say are 502, and not stored', async () => {
  const upstream = await Upstream.start();
  const mirror = await TestMirror.start({ upstream: upstream.url });
  const both = { schemaVersion: 2, manifests: [], config: { digest: 'x', size: 1 }, layers: [] };
  const cases = {
    html: manifestOf({}, 'text/html'),
    empty: manifestOf({}, ociManifest),
    schema1: manifestOf({ schemaVersion: 1 }, 'application/vnd.docker.distribution.manifest.v1+prettyjws'),
    other: manifestOf(
      { schemaVersion: 2, mediaType: 'application/vnd.oci.image.index.v1+json', config: {}, layers: [] },
      ociManifest,
    ),
    both: manifestOf(both, ociManifest),
    huge: manifestOf({ schemaVersion: 2, padding: 'x'.repeat(9 * 1024 * 1024) }, ociManifest),
  };
  try {
    for (const [name, manifest] of Object.entries(cases)) {
      upstream.addManifest('library/x', manifest, name);
      for (const reference of [name, manifest.digest]) {
        const reply = await mirror.get(`/v2/library/x/manifests/${reference}`);
        assert.equal(reply.status, 502, name);
      }
    }
    const wrong = { ...imageOf([]).manifest, bytes: Buffer.from('{"schemaVersion":2}') };
    upstream.addManifest('library/x', wrong, 'wrong');
    assert.equal((await mirror.get('/v2/library/x/manifests/wrong')).status, 502);
    const custom = manifestOf({ anything: 'é', a: 1 }, 'application/vnd.example+json');
    upstream.addManifest(
      'library/x',
      { ...custom, mediaType: 'application/vnd.example+json; charset=utf-8' },
      'custom',
    );
    const reply = await mirror.get('/v2/library/x/manifests/custom');
    assert.equal(reply.headers['content-type'], 'application/vnd.example+json');
    sameBytes(reply.body, custom.bytes);
    await mirror.stop();
    assert.equal((await mirror.files('blobs')).length, 1);
  } finally {
    await mirror.close();
    await upstream.stop();
  }
});
