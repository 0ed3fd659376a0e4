import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { connect, createServer as createTcpServer, type AddressInfo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Authority } from '../support/certificates.ts';
import { errorOf, sameBytes } from '../support/http.ts';
import { imageOf, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const image = imageOf([randomBlob(200_000)]);
const layer = image.layers[0]!;

describe('where an upstream may send us', () => {
  test('forbidden redirects: 502, no connection, and a line that names them', async (t) => {
    const upstream = await Upstream.start();
    upstream.addImage('library/x', image, '1');
    const mirror = await TestMirror.start({ upstream: upstream.url });
    t.after(() => Promise.all([mirror.close(), upstream.stop()]));
    for (const [location, named] of [
      ['http://169.254.169.254/latest/meta-data/', '169.254.169.254'],
      ['http://[::ffff:a9fe:a9fe]/', 'a9fe:a9fe'],
      ['http://[64:ff9b::a9fe:a9fe]/', 'a9fe:a9fe'],
      ['http://2852039166/', '169.254.169.254'],
      ['http://0xa9.0xfe.0xa9.0xfe/', '169.254.169.254'],
      ['http://0.0.0.0/', '0.0.0.0'],
      ['http://user:pass@127.0.0.1/', 'carries credentials'],
      ['file:///etc/passwd', 'not an http URL'],
      ['gopher://127.0.0.1/', 'not an http URL'],
    ] as const) {
      upstream.script('blob', (_call, _req, res) => void res.writeHead(307, { location }).end());
      upstream.script('manifest', (_call, _req, res) => void res.writeHead(307, { location }).end());
      for (const path of [`blobs/${layer.digest}`, 'manifests/1', `manifests/${image.manifest.digest}`]) {
        const reply = await mirror.get(`/v2/x/${path}`);
        assert.equal(reply.status, 502, `${location} ${path}`);
        assert.equal(reply.headers.location, undefined);
      }
      await until(() => mirror.log.includes(named), `the log names ${named}`);
      upstream.behave();
    }
    assert.ok(!mirror.log.includes('user:pass'));
    assert.equal((await mirror.get('/v2/x/manifests/1')).status, 200);
  });

  test('redirects to nowhere, without an end, and from https to http', async (t) => {
    const upstream = await Upstream.start();
    upstream.addImage('library/x', image, '1');
    const mirror = await TestMirror.start({ upstream: upstream.url });
    t.after(() => Promise.all([mirror.close(), upstream.stop()]));
    const path = `/v2/x/blobs/${layer.digest}`;
    for (const headers of [
      {},
      { location: '' },
      { location: 'http://[' },
      { location: path.replace('/x/', '/library/x/') },
    ]) {
      upstream.script('blob', (_call, _req, res) => void res.writeHead(302, headers).end());
      assert.equal((await mirror.get(path)).status, 502, JSON.stringify(headers));
      upstream.behave();
    }
    let hops = 0;
    upstream.script('blob', (_call, _req, res) => {
      res.writeHead(302, { location: `/v2/library/x/blobs/${layer.digest}?hop=${++hops}` }).end();
    });
    upstream.forget();
    assert.equal((await mirror.get(path)).status, 502);
    // Five hops a try; a download tries a few times.
    assert.equal(upstream.count('blob') % 6, 0);
    upstream.behave();
    upstream.script('blob', (_call, _req, res) => void res.writeHead(300).end(), { times: 4 });
    assert.equal((await mirror.get(path)).status, 502);
  });

  test('a realm on a foreign host gets nothing, not even a connection, unless it is configured', async (t) => {
    const upstream = await Upstream.start({ auth: 'bearer', login: { username: 'u', password: 'p4ssword' } });
    upstream.addImage('acme/x', image, '1');
    const port = new URL(upstream.realm).port;
    let connections = 0;
    const evil = createServer((_req, res) => void res.end('{"token":"x"}')).listen(0);
    evil.on('connection', () => (connections += 1));
    await once(evil, 'listening');
    const evilUrl = `http://localhost:${(evil.address() as AddressInfo).port}/token`;
    const accounts = [{ username: 'u', password: 'p4ssword' }];
    const mirror = await TestMirror.start({ upstream: upstream.url, upstreamConfig: { accounts } });
    t.after(async () => {
      evil.close();
      await Promise.all([mirror.close(), upstream.stop()]);
    });
    for (const realm of [
      evilUrl,
      'https://169.254.169.254/token',
      'https://evil.example/token',
      '/token',
      'file:///x',
    ]) {
      const challenge = `Bearer realm="${realm}",service="x"`;
      for (const kind of ['ping', 'manifest'] as const)
        upstream.script(
          kind,
          (_call, _req, res) => void res.writeHead(401, { 'www-authenticate': challenge }).end(),
        );
      const reply = await mirror.get('/v2/acme/x/manifests/1');
      assert.equal(reply.status, 502, realm);
      await until(
        () => mirror.log.split('\n').some((line) => line.includes('realm') && line.includes(realm)),
        realm,
      );
      upstream.behave();
      mirror.clock.advance(60_000);
    }
    assert.equal(connections, 0);
    assert.equal(upstream.count('token'), 0);
    assert.ok(!mirror.log.includes('p4ssword'));

    // Where the configuration names it, it is asked.
    const named = `http://localhost:${port}/token`;
    const challenge = `Bearer realm="${named}",service="scripted"`;
    upstream.script(
      'ping',
      (_call, _req, res) => void res.writeHead(401, { 'www-authenticate': challenge }).end(),
    );
    mirror.reconfigure({ upstreamConfig: { accounts, realms: [`http://localhost:${port}/`] } });
    await mirror.restart();
    assert.equal((await mirror.get('/v2/acme/x/manifests/1')).status, 200);
  });
});

/** A registry without authentication, over TLS; whoever does not show a certificate is refused if `clientCa` says so. */
async function tlsRegistry(pair: { cert: string; key: string }, clientCa?: string): Promise<Server> {
  const server = createTlsServer(
    {
      cert: await readFile(pair.cert),
      key: await readFile(pair.key),
      ...(clientCa !== undefined && {
        ca: await readFile(clientCa),
        requestCert: true,
        rejectUnauthorized: true,
      }),
    },
    (req: IncomingMessage, res) => {
      const isBlob = req.url?.endsWith(layer.digest);
      res.writeHead(isBlob ? 200 : 404, { 'content-length': isBlob ? layer.bytes.length : 0 });
      res.end(isBlob && req.method === 'GET' ? layer.bytes : undefined);
    },
  );
  server.listen(0);
  await once(server, 'listening');
  return server;
}

describe('how an upstream is connected to', () => {
  let directory: string;
  let authority: Authority;
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'layercache-network-'));
    authority = await Authority.create(directory);
  });
  after(() => rm(directory, { recursive: true, force: true }));

  /** What a mirror says that is configured so. */
  async function pull(url: string, upstreamConfig: Record<string, unknown>): Promise<[number, TestMirror]> {
    const mirror = await TestMirror.start({ upstream: url, upstreamConfig });
    const reply = await mirror.get(`/v2/library/x/blobs/${layer.digest}`);
    if (reply.status === 200) sameBytes(reply.body, layer.bytes);
    else assert.equal(errorOf(reply).code, 'UNAVAILABLE');
    return [reply.status, mirror];
  }

  test('by its own authority, with a certificate of ours, or without looking', async (t) => {
    const pair = await authority.sign('registry');
    const client = await authority.sign('mirror');
    const open = await tlsRegistry(pair);
    const closed = await tlsRegistry(pair, authority.certificate);
    t.after(() => {
      for (const server of [open, closed]) {
        server.closeAllConnections();
        server.close();
      }
    });
    const urlOf = (server: Server) => `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const ca = authority.certificate;
    for (const [server, config, expected] of [
      [open, {}, 503],
      [open, { ca }, 200],
      [open, { insecureSkipVerify: true }, 200],
      [closed, { ca }, 503],
      [closed, { ca, ...client }, 200],
    ] as const) {
      const [status, mirror] = await pull(urlOf(server), config);
      assert.equal(status, expected, JSON.stringify(config));
      if ('insecureSkipVerify' in config) {
        assert.equal(await mirror.metric('layercache_upstream_insecure{registry="docker.io"}'), 1);
        await until(() => mirror.log.includes('insecureSkipVerify'), 'it is told');
      }
      await mirror.close();
    }
  });

  test('through a proxy, which is told who we are, except for what is excepted', async (t) => {
    const targets: string[] = [];
    const sockets = new Set<Socket>();
    const proxy = createServer().listen(0);
    proxy.on('connect', (req: IncomingMessage, socket: Socket) => {
      sockets.add(socket);
      const login = Buffer.from('me:s3cr3t proxy').toString('base64');
      if (req.headers['proxy-authorization'] !== `Basic ${login}`) {
        socket.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n');
        return;
      }
      targets.push(req.url ?? '');
      const [host, port] = (req.url ?? '').split(':');
      const to = connect(Number(port), host === 'registry.internal.example' ? '127.0.0.1' : host!);
      to.on('error', () => socket.destroy());
      socket.on('error', () => to.destroy());
      to.on('connect', () => socket.write('HTTP/1.1 200 OK\r\n\r\n'));
      socket.pipe(to).pipe(socket);
    });
    await once(proxy, 'listening');
    const registry = await tlsRegistry(await authority.sign('registry'));
    const plain = await Upstream.start({ cdn: true });
    plain.addBlob('library/x', layer);
    t.after(async () => {
      for (const socket of sockets) socket.destroy();
      proxy.close();
      registry.closeAllConnections();
      registry.close();
      await plain.stop();
    });
    const { port } = proxy.address() as AddressInfo;
    const via = `http://me:s3cr3t%20proxy@127.0.0.1:${port}`;
    const registryPort = (registry.address() as AddressInfo).port;
    const ca = authority.certificate;

    let [status, mirror] = await pull(`https://127.0.0.1:${registryPort}`, { ca, proxy: via });
    assert.equal(status, 200);
    assert.deepEqual([...new Set(targets)], [`127.0.0.1:${registryPort}`]);
    assert.ok(!mirror.log.includes('s3cr3t'));
    await mirror.close();

    // Redirects go through it too.
    targets.length = 0;
    [status, mirror] = await pull(plain.url, { proxy: via });
    assert.equal(status, 200);
    assert.deepEqual(
      new Set(targets),
      new Set([plain.url, plain.cdnUrl].map((url) => url.replace('http://', ''))),
    );
    await mirror.close();

    // A name that only the proxy can look up.
    targets.length = 0;
    [status, mirror] = await pull(`http://registry.internal.example:${new URL(plain.url).port}`, {
      proxy: via,
      allowPrivateNetwork: true,
    });
    assert.equal(status, 200);
    assert.ok(targets[0]?.startsWith('registry.internal.example:'));
    await mirror.close();

    [status, mirror] = await pull(plain.url, { proxy: `http://127.0.0.1:${port}` });
    assert.equal(status, 503);
    await until(() => mirror.log.includes(`the proxy 127.0.0.1:${port} answered 407`), 'the log says why');
    await mirror.close();
  });

  test('a registry that anybody may rent has to show what it claims to have', async (t) => {
    const secret = imageOf([randomBlob(300_000)]);
    const login = { username: 'u', password: 'p' };
    const owner = await Upstream.start({ auth: 'bearer', login });
    owner.addImage('acme/secret', secret, '1');
    const held: Record<string, Buffer> = {
      [secret.manifest.digest]: secret.manifest.bytes,
      [secret.layers[0]!.digest]: secret.layers[0]!.bytes,
    };
    let isHonest = false;
    const pair = await authority.sign('evil');
    const evil = createTlsServer(
      { cert: await readFile(pair.cert), key: await readFile(pair.key) },
      (req, res) => {
        const digest = /(sha256:\w+)$/.exec(req.url ?? '')?.[1] ?? secret.manifest.digest;
        const bytes = held[digest];
        if (!bytes) {
          res.writeHead(req.url === '/v2/' ? 200 : 404).end();
          return;
        }
        const isManifest = digest === secret.manifest.digest;
        const [, first, last] = /bytes=(\d+)-(\d+)/.exec(req.headers.range ?? '') ?? [];
        const part = first === undefined ? bytes : bytes.subarray(Number(first), Number(last) + 1);
        res.writeHead(first === undefined ? 200 : 206, {
          'content-type': isManifest ? secret.manifest.mediaType : 'application/octet-stream',
          'docker-content-digest': digest,
          'content-length': part.length,
          ...(first !== undefined && { 'content-range': `bytes ${first}-${last!}/${bytes.length}` }),
        });
        res.end(req.method === 'HEAD' ? undefined : isHonest ? part : Buffer.alloc(part.length));
      },
    ).listen(0);
    await once(evil, 'listening');
    const sockets = new Set<Socket>();
    const proxy = createServer().listen(0);
    proxy.on('connect', (_req: IncomingMessage, socket: Socket) => {
      const to = connect((evil.address() as AddressInfo).port, '127.0.0.1');
      for (const each of [socket, to]) {
        sockets.add(each);
        each.on('error', () => undefined);
      }
      to.on('connect', () => socket.write('HTTP/1.1 200 OK\r\n\r\n'));
      socket.pipe(to).pipe(socket);
    });
    await once(proxy, 'listening');
    const mirror = await TestMirror.start({
      upstream: owner.url,
      upstreamConfig: { accounts: [login] },
      upstreams: [
        {
          registry: '*.rented.example.org',
          insecureSkipVerify: true,
          proxy: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
        },
      ],
    });
    t.after(async () => {
      for (const socket of sockets) socket.destroy();
      evil.close();
      proxy.close();
      await Promise.all([mirror.close(), owner.stop()]);
    });
    const own = ['manifests/1', `blobs/${secret.layers[0]!.digest}`];
    // Nor before it is held: what turns out to be something else proves nothing for later.
    await mirror.get(`/v2/x/y/${own[1]!}?ns=evil.rented.example.org`).catch(() => undefined);
    for (const path of own) assert.equal((await mirror.get(`/v2/acme/secret/${path}`)).status, 200);
    await mirror.fillsEnded();
    const others = [...own, `manifests/${secret.manifest.digest}`].map(
      (path) => `/v2/x/y/${path}?ns=evil.rented.example.org`,
    );
    for (const path of others) {
      const reply = await mirror.get(path);
      assert.ok(reply.status >= 400, `${path}: ${reply.status}`);
    }
    isHonest = true;
    // Who has shown something else is not asked again so soon.
    assert.ok((await mirror.get(others[1]!)).status >= 400);
    for (const path of others) {
      const reply = await mirror.get(path.replace('evil.', 'honest.'));
      assert.equal(reply.status, 200, path);
      assert.notEqual(reply.headers['x-cache'], 'miss');
    }
  });

  test('a proxy that keeps silent costs the connect timeout', async (t) => {
    const silent = createTcpServer(() => undefined).listen(0);
    await once(silent, 'listening');
    const mirror = await TestMirror.start({
      upstream: 'https://registry.example.com',
      upstreamConfig: { proxy: `http://127.0.0.1:${(silent.address() as AddressInfo).port}` },
      config: { fetch: { connectTimeout: '200ms' } },
    });
    t.after(async () => {
      silent.close();
      await mirror.close();
    });
    const reply = await mirror.get('/v2/x/manifests/1');
    assert.equal(reply.status, 503);
    assert.match(errorOf(reply).message, /timed out/);
  });
});
