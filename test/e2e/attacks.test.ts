import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { after, before, describe, test } from 'node:test';
import { createHttpServer } from '../../src/server/http-server.ts';
import { errorOf, sameBytes } from '../support/http.ts';
import { blobOf, imageOf, ociIndex, ociManifest, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream, type Script } from '../support/upstream.ts';

describe('clients that mean no good', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const image = imageOf([randomBlob(2_000_000)]);
  const layer = image.layers[0]!;

  before(async () => {
    upstream = await Upstream.start();
    upstream.addImage('library/x', image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url });
    await wellBehaved();
  });
  after(async () => {
    await mirror.close();
    await upstream.stop();
  });

  async function wellBehaved(): Promise<void> {
    sameBytes((await mirror.get('/v2/x/manifests/1')).body, image.manifest.bytes);
    sameBytes((await mirror.get(`/v2/x/blobs/${layer.digest}`)).body, layer.bytes);
  }

  function open(): Socket {
    const socket = connect(mirror.service.address.port, '127.0.0.1');
    socket.on('error', () => undefined);
    return socket;
  }

  /** All that comes back for these bytes, until the connection is closed. */
  async function raw(bytes: string): Promise<string> {
    const socket = open();
    socket.write(bytes, 'latin1');
    return text(socket.setEncoding('latin1'));
  }

  const get = 'GET /v2/x/manifests/1 HTTP/1.1\r\nHost: x\r\n';
  const forms: [title: string, bytes: string, status: RegExp][] = [
    [
      'length and chunks',
      `${get}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x`,
      /^400$/,
    ],
    ['two lengths', `${get}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello`, /^400$/],
    ['a length with a sign', `${get}Content-Length: +5\r\n\r\nhello`, /^400$/],
    ['a coding that is hidden', `${get}Transfer-Encoding: xchunked\r\n\r\nhello`, /^(400)?$/],
    ['a coding in the wrong place', `${get}Transfer-Encoding: chunked, identity\r\n\r\nhello`, /^400$/],
    ['a space before the colon', `${get}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n`, /^400$/],
    ['a folded line', `${get}Connection: close\r\nX: a\r\n b\r\n\r\n`, /^(400|200)$/],
    ['a bare line feed', 'GET /v2/ HTTP/1.1\nHost: x\nConnection: close\n\n', /^(400|200)$/],
    ['a null in a header', `${get}X: a\0b\r\n\r\n`, /^400$/],
    ['two hosts', `${get}Host: y\r\nConnection: close\r\n\r\n`, /^400$/],
    ['no host', 'GET /v2/ HTTP/1.1\r\n\r\n', /^400$/],
    ['another protocol', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', /^(400|505)$/],
    ['no protocol', 'hello\r\n\r\n', /^400$/],
    ['a tunnel', 'CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n', /^(400|404|405)?$/],
    ['a proxy', 'GET http://evil.example/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n', /^200$/],
    ['a proxy with a login', 'GET http://a@b/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n', /^4/],
    ['an upgrade', `${get}Connection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n`, /^200$/],
  ];
  for (const [title, bytes, status] of forms) {
    test(`${title}: no more than one answer, and the connection is closed`, async () => {
      const calls = upstream.calls.length;
      const answer = await raw(bytes);
      const statuses = [...answer.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, code]) => code ?? '');
      assert.ok(statuses.length <= 1, answer);
      assert.match(statuses[0] ?? '', status);
      assert.equal(upstream.calls.length, calls);
      await wellBehaved();
    });
  }

  test('targets and headers of any length end in 4xx, as JSON', async () => {
    for (const [bytes, status] of [
      [`GET /v2/${'a'.repeat(100_000)}/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`, 400],
      [
        `GET /v2/x/manifests/1?ns=${'a'.repeat(100_000)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`,
        400,
      ],
      [`GET /v2/${'a'.repeat(200_000)} HTTP/1.1\r\nHost: x\r\n\r\n`, 431],
      [`${get}X: ${'a'.repeat(200_000)}\r\n\r\n`, 431],
      [`${get}${Array.from({ length: 20_000 }, (_, i) => `x-${i}: 1\r\n`).join('')}\r\n`, 431],
    ] as const) {
      const answer = await raw(bytes);
      assert.match(answer, new RegExp(`^HTTP/1.1 ${status} `));
      assert.match(answer, /\{"errors":\[\{"code":"/);
    }
    const long = await mirror.get('/v2/x/manifests/1', { headers: { 'user-agent': 'a'.repeat(100_000) } });
    assert.equal(long.status, 200);
    await until(() => mirror.log.includes('"agent":"aaa'), 'the line is there');
    assert.ok(!mirror.log.includes('a'.repeat(300)));
    await wellBehaved();
  });

  test('1,000 requests in one packet are answered, in order', async () => {
    const socket = open();
    const targets = Array.from({ length: 1000 }, (_, i) => (i % 2 === 0 ? '/v2/x/manifests/1' : '/v2/'));
    const requests = targets.map((target, i) => {
      const last = i === targets.length - 1 ? 'Connection: close\r\n' : '';
      return `HEAD ${target} HTTP/1.1\r\nHost: x\r\n${last}\r\n`;
    });
    socket.write(requests.join(''));
    const answers = (await text(socket.setEncoding('latin1'))).split('\r\n\r\n').slice(0, -1);
    assert.equal(answers.length, targets.length);
    answers.forEach((answer, i) => assert.equal(answer.includes('ETag'), i % 2 === 0, `${i}`));
  });

  test('whoever asks for much at once and reads nothing waits for itself alone', async () => {
    const sockets = Array.from({ length: 8 }, () => {
      const socket = open();
      socket.pause();
      socket.write(`GET /v2/x/blobs/${layer.digest} HTTP/1.1\r\nHost: x\r\n\r\n`.repeat(1000));
      return socket;
    });
    await Promise.all(sockets.map((socket) => once(socket, 'connect')));
    for (let i = 0; i < 20; i++) await wellBehaved();
    for (const socket of sockets) socket.destroy();
  });

  test('JSON that is nested beyond all sense is refused, and holds nobody up', async () => {
    const deep = `{"schemaVersion":2,"config":{"digest":"x","size":1},"layers":[],"x":${'['.repeat(4_000_000)}`;
    upstream.script('manifest', (_call, _req, res) => {
      res.writeHead(200, { 'content-type': 'application/vnd.oci.image.manifest.v1+json' }).end(deep);
    });
    upstream.script(
      'tags',
      (_call, _req, res) => void res.writeHead(200).end(`{"tags":${'['.repeat(4_000_000)}`),
    );
    for (const path of ['manifests/deep', 'tags/list'])
      assert.equal((await mirror.get(`/v2/x/${path}`)).status, 502);
    upstream.behave();
  });

  test('a body that nobody asked for is passed over, and what takes one is refused at once', async () => {
    const answer = await raw(
      `${get}Content-Length: 5\r\n\r\nhelloGET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`,
    );
    assert.deepEqual(answer.match(/HTTP\/1\.1 \d+/g), ['HTTP/1.1 200', 'HTTP/1.1 200']);
    const socket = open();
    socket.write('PUT /v2/x/blobs/uploads/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n');
    const flood = setInterval(() => socket.write(`10000\r\n${'x'.repeat(0x10000)}\r\n`), 1);
    const refusal = await text(socket.setEncoding('latin1')).catch(() => 'HTTP/1.1 405');
    clearInterval(flood);
    assert.match(refusal, /^HTTP\/1\.1 405/);
  });

  test('1,000 connections that say nothing disturb nobody', async () => {
    const sockets = Array.from({ length: 1000 }, open);
    await Promise.all(sockets.map((socket) => once(socket, 'connect')));
    for (const socket of sockets.slice(0, 500)) socket.write('GET /v2/x/mani');
    await wellBehaved();
    for (const socket of sockets) socket.destroy();
  });

  test('names and digests that are made up: each is looked for once, and not many at a time', async () => {
    upstream.forget();
    let most = 0;
    let running = 0;
    upstream.script('blob', async (_call, _req, res) => {
      running += 1;
      most = Math.max(most, running);
      await new Promise((resolve) => setImmediate(resolve));
      running -= 1;
      res.writeHead(404).end();
    });
    const paths = Array.from(
      { length: 3000 },
      (_, i) => `/v2/x/blobs/sha256:${i.toString(16).padStart(64, '0')}`,
    );
    const statuses = await Promise.all(paths.map(async (path) => (await mirror.get(path)).status));
    assert.deepEqual(new Set(statuses), new Set([404]));
    assert.ok(most <= 64, `${most} at once`);
    const before = upstream.calls.length;
    await Promise.all(paths.slice(0, 500).map((path) => mirror.get(path)));
    assert.equal(upstream.calls.length, before);
    upstream.behave();
    await wellBehaved();
  });

  test('what a client says of itself stays in its line of the log', async () => {
    const answer = await raw(`${get}Connection: close\r\nUser-Agent: a\xff\t","status":200,"b":"\r\n\r\n`);
    assert.match(answer, /^HTTP\/1\.1 200/);
    await until(() => mirror.log.includes('\\"b\\"'), 'the line is there');
    for (const line of mirror.log.trim().split('\n')) {
      assert.doesNotThrow(() => JSON.parse(line) as unknown, line);
    }
  });
});

describe('upstreams that mean no good', () => {
  /** An upstream that answers with these bytes, whatever it is asked. */
  async function answering(bytes: string): Promise<{ url: string; close: () => void }> {
    const server = createTcpServer((socket) => {
      socket.on('error', () => undefined);
      socket.once('data', () => socket.end(bytes, 'latin1'));
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, close: () => server.close() };
  }

  const body = '{"schemaVersion":2,"config":{"digest":"x","size":1},"layers":[]}';
  for (const [title, head] of [
    ['a header that is split', 'Content-Type: a/b\r\n\tX-Evil: 1'],
    ['a type with control characters', 'Content-Type: a/b\x01c'],
    ['a type of 8 KB', `Content-Type: a/${'b'.repeat(8192)}`],
    ['a list that leads elsewhere', 'Content-Type: application/json\r\nLink: <//evil.example/>; rel="next"'],
    ['headers without an end', `X: ${'a'.repeat(200_000)}`],
    ['two lengths', 'Content-Length: 3\r\nContent-Type: a/b'],
    ['a wrong line end', 'X: 1\nX-Evil: 2'],
  ] as const) {
    test(`${title}: an error or clean headers`, async (t) => {
      const upstream = await answering(
        `HTTP/1.1 200 OK\r\n${head}\r\nContent-Length: ${body.length}\r\nSet-Cookie: a=b\r\n\r\n${body}`,
      );
      const mirror = await TestMirror.start({ upstream: upstream.url });
      t.after(async () => {
        upstream.close();
        await mirror.close();
      });
      for (const path of ['manifests/1', 'tags/list', `referrers/sha256:${'a'.repeat(64)}`]) {
        const reply = await mirror.get(`/v2/x/${path}`);
        assert.ok(reply.status >= 500 || reply.status === 200, `${path}: ${reply.status}`);
        if (reply.status >= 500) assert.match(errorOf(reply).code, /^[A-Z]+$/);
        for (const name of ['x-evil', 'set-cookie', 'link']) assert.equal(reply.headers[name], undefined);
      }
    });
  }
});

test('whoever takes too long with a request is cut off, and told so', async (t) => {
  const server = createHttpServer((_req, res) => void res.end('ok'), { headersTimeoutMs: 600 }).listen(0);
  t.after(() => server.close());
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const slow = Array.from({ length: 100 }, () => {
    const socket = connect(port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.write('GET / HTTP/1.1\r\n');
    const drip = setInterval(() => socket.write('x'), 50);
    socket.on('close', () => clearInterval(drip));
    return text(socket.setEncoding('latin1')).catch(() => '');
  });
  const answers = await Promise.all(slow);
  assert.ok(answers.some((answer) => answer.startsWith('HTTP/1.1 408')));
});

for (const status of [206, 200])
  test(`registries that keep every connection busy with nothing (${status}) hold up neither the mirror nor others`, async (t) => {
    const [a, b, well] = await Promise.all([Upstream.start(), Upstream.start(), Upstream.start()]);
    const mirror = await TestMirror.start({
      upstream: well.url,
      upstreams: [
        { registry: 'a.example', url: a.url },
        { registry: 'b.example', url: b.url },
      ],
      config: { fetch: { firstByteTimeout: '10s' } },
    });
    mirror.clock.run();
    t.after(() => Promise.all([mirror.close(), a.stop(), b.stop(), well.stop()]));
    const size = 100 * 1024 * 1024;
    const stall: Script = (_call, req, res) => {
      const [, first = '0', last = String(size - 1)] =
        /bytes=(\d+)-(\d+)/.exec(req.headers.range ?? '') ?? [];
      if (status === 200) res.writeHead(200, { 'content-length': size });
      else
        res.writeHead(206, {
          'content-length': Number(last) - Number(first) + 1,
          'content-range': `bytes ${first}-${last}/${size}`,
        });
      res.write('x');
    };
    for (const upstream of [a, b])
      upstream.script('blob', stall, { match: ({ method }) => method === 'GET' });
    const left = new AbortController();
    const stuck: Promise<unknown>[] = [];
    for (let i = 0; i < 40; i++)
      for (const registry of ['a.example', 'b.example']) {
        const path = `/v2/${registry}/x/y/blobs/${randomBlob(20).digest}`;
        stuck.push(
          mirror
            .get(path, { onData: () => (left.signal.aborted ? false : undefined) })
            .catch(() => undefined),
        );
      }
    await until(() => a.count('blob') >= 20 && b.count('blob') >= 20, 'they hold their connections');
    for (let i = 0; i < 5; i++) {
      const blob = randomBlob(300_000);
      well.addBlob('library/x', blob);
      const before = performance.now();
      const reply = await mirror.get(`/v2/library/x/blobs/${blob.digest}`);
      assert.equal(reply.status, 200);
      sameBytes(reply.body, blob.bytes);
      assert.ok(performance.now() - before < 9000);
      assert.equal((await mirror.get('/v2/')).status, 200);
    }
    await Promise.all([a.stop(), b.stop()]);
    await mirror.stop();
    await Promise.all(stuck);
  });

test('a manifest of a million wrong entries is one short error', async (t) => {
  const upstream = await Upstream.start();
  const mirror = await TestMirror.start({ upstream: upstream.url });
  t.after(() => Promise.all([mirror.close(), upstream.stop()]));
  for (const [i, [key, entry]] of (
    [
      ['manifests', '{}'],
      ['manifests', '1'],
      ['layers', '{}'],
      ['manifests', `{"digest":"sha256:${'0'.repeat(64)}","size":1}`],
    ] as const
  ).entries()) {
    const count = Math.floor(7_000_000 / (entry.length + 1));
    const type = key === 'layers' ? ociManifest : ociIndex;
    const config = key === 'layers' ? `"config":{"digest":"sha256:${'0'.repeat(64)}","size":1},` : '';
    const bytes = Buffer.from(
      `{"schemaVersion":2,"mediaType":"${type}",${config}"${key}":[${`${entry},`.repeat(count)}${entry}]}`,
    );
    upstream.addManifest('library/x', { ...blobOf(bytes), mediaType: type }, `t${i}`);
    const before = mirror.log.length;
    const reply = await mirror.get(`/v2/x/manifests/t${i}`);
    assert.equal(reply.status, 502);
    assert.ok(reply.body.length < 1000);
    await until(() => mirror.log.includes(`"reference":"t${i}"`), 'its line is there');
    assert.ok(mirror.log.length - before < 20_000, `${mirror.log.length - before} characters of log`);
  }
});
