import { hashSync } from 'bcryptjs';
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { copyFile, mkdtemp, readFile, rm, utimes, writeFile } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { Authority } from '../support/certificates.ts';
import { errorOf, sameBytes, type Ask } from '../support/http.ts';
import { imageOf, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const basic = (user: string, password: string) => ({
  authorization: `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`,
});

describe('clients', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  let directory: string;
  const image = imageOf([randomBlob(200_000)]);
  const layer = image.layers[0]!;
  const pathsOf = (repo: string) => [
    `/v2/${repo}/manifests/1`,
    `/v2/${repo}/manifests/${image.manifest.digest}`,
    `/v2/${repo}/blobs/${layer.digest}`,
    `/v2/${repo}/tags/list`,
    `/v2/${repo}/referrers/${image.manifest.digest}`,
  ];

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'layercache-clients-'));
  });
  after(() => rm(directory, { recursive: true, force: true }));

  beforeEach(async () => {
    upstream = await Upstream.start({ auth: 'bearer', referrers: true });
    for (const repo of ['acme/app', 'evil/app', 'library/alpine']) {
      for (const tag of ['1', '2', '3.1']) upstream.addImage(repo, image, tag);
    }
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const start = async (config: Record<string, unknown>): Promise<void> => {
    mirror = await TestMirror.start({ upstream: upstream.url, config });
  };

  const statusOf = async (path: string, options: Ask = {}) => (await mirror.get(path, options)).status;

  describe('allow and deny', () => {
    test('denied: 403 for every kind of request, by every name, stored or not, and nobody is asked', async () => {
      await start({ deny: ['docker.io/evil/**'] });
      for (const path of pathsOf('acme/app')) assert.equal(await statusOf(path), 200, path);
      upstream.forget();
      for (const path of [
        ...pathsOf('evil/app'),
        ...pathsOf('docker.io/evil/app'),
        ...pathsOf('evil/app').map((each) => `/docker.io${each}`),
        ...pathsOf('evil/app').map((each) => `${each}?ns=registry-1.docker.io`),
      ]) {
        for (const method of ['GET', 'HEAD']) {
          const reply = await mirror.get(path, { method });
          assert.equal(reply.status, 403, `${method} ${path}`);
          if (method === 'GET') assert.equal(errorOf(reply).code, 'DENIED');
        }
      }
      assert.equal(upstream.calls.length, 0);
    });

    test('allowed: what no pattern names is 403; a tag brings its digests with it', async () => {
      await start({ allow: ['docker.io/acme/**', 'docker.io/alpine:3*'], deny: ['docker.io/acme/app:2'] });
      for (const path of pathsOf('acme/app')) assert.equal(await statusOf(path), 200, path);
      for (const path of pathsOf('evil/app')) assert.equal(await statusOf(path), 403, path);
      assert.equal(await statusOf('/v2/acme/app/manifests/2'), 403);
      assert.equal(await statusOf('/v2/alpine/manifests/3.1'), 200);
      assert.equal(await statusOf('/v2/alpine/manifests/1'), 403);
      assert.equal(await statusOf(`/v2/alpine/manifests/${image.manifest.digest}`), 200);
      assert.equal(await statusOf(`/v2/alpine/blobs/${layer.digest}`), 200);
    });

    test('by group: of addresses behind a proxy, the first that fits', async () => {
      await start({
        trustedProxies: ['127.0.0.1'],
        allow: ['docker.io/library/**'],
        clients: {
          groups: [
            { name: 'ci', from: ['10.1.0.0/16'], allow: ['docker.io/acme/**'] },
            { name: 'guests', from: ['10.2.0.0/16', '2001:db8::/32'], deny: ['docker.io/library/alpine:3*'] },
          ],
        },
      });
      const as = (address: string, path: string) =>
        statusOf(path, { headers: { 'x-forwarded-for': address } });
      const [acme, alpine] = ['/v2/acme/app/manifests/1', '/v2/alpine/manifests/3.1'];
      assert.deepEqual([await as('10.1.2.3', acme), await as('10.1.2.3', alpine)], [200, 403]);
      assert.deepEqual([await as('10.2.2.3', acme), await as('10.2.2.3', alpine)], [403, 403]);
      assert.deepEqual([await as('2001:db8::5', acme), await as('2001:db8::5', alpine)], [403, 403]);
      assert.deepEqual([await as('10.3.2.3', acme), await as('10.3.2.3', alpine)], [403, 200]);
    });
  });

  describe('addresses', () => {
    test('allowFrom lets nobody else in, not even to a ping', async () => {
      await start({ clients: { allowFrom: ['10.0.0.0/8', '2001:db8::/32'] } });
      const reply = await mirror.get('/v2/');
      assert.equal(reply.status, 403);
      assert.equal(errorOf(reply).code, 'DENIED');
      await mirror.reload({ config: { clients: { allowFrom: ['127.0.0.1'] } } });
      assert.equal(await statusOf('/v2/'), 200);
    });

    test('X-Forwarded-For counts from trusted proxies alone, from the right', async () => {
      await start({ clients: { allowFrom: ['10.0.0.0/8'] }, trustedProxies: ['127.0.0.1', '192.0.2.0/24'] });
      const as = (header: string) => statusOf('/v2/', { headers: { 'x-forwarded-for': header } });
      assert.equal(await as('10.1.1.1'), 200);
      assert.equal(await as('10.1.1.1, 192.0.2.7'), 200);
      assert.equal(await as('10.1.1.1:4711'), 200);
      // What a client writes itself stands further left.
      assert.equal(await as('10.1.1.1, 198.51.100.1'), 403);
      assert.equal(await as('10.1.1.1, nonsense'), 403);
      assert.equal(await statusOf('/v2/'), 403);
      await mirror.reload({ config: { clients: { allowFrom: ['10.0.0.0/8'] } } });
      assert.equal(await as('10.1.1.1'), 403);
      await until(() => mirror.log.includes('"client":"198.51.100.1"'), 'the access line names the client');
      assert.ok(mirror.log.includes('"client":"10.1.1.1"'));
    });
  });

  describe('limits', () => {
    test('requests in a second: 429 with when to come again, for that client alone', async () => {
      await start({ trustedProxies: ['127.0.0.1'], clients: { maxRequestsPerSecond: 10 } });
      const as = (address: string) => mirror.get('/v2/', { headers: { 'x-forwarded-for': address } });
      const replies = await Promise.all(Array.from({ length: 70 }, () => as('10.1.1.1')));
      assert.equal(replies.filter(({ status }) => status === 200).length, 50);
      const refused = replies.find(({ status }) => status === 429)!;
      assert.equal(refused.headers['retry-after'], '1');
      assert.equal(errorOf(refused).code, 'TOOMANYREQUESTS');
      assert.equal((await as('10.1.1.2')).status, 200);
      mirror.clock.advance(1000);
      const later = await Promise.all(Array.from({ length: 15 }, () => as('10.1.1.1')));
      assert.equal(later.filter(({ status }) => status === 200).length, 10);
      // One client has a whole /64.
      const v6 = await Promise.all(Array.from({ length: 70 }, (_, i) => as(`2001:db8::${i + 1}`)));
      assert.equal(v6.filter(({ status }) => status === 200).length, 50);
    });

    test('connections: those above are answered with 429 and closed, those far above closed; the first go on', async () => {
      await start({ clients: { maxConnections: 3 } });
      const { port } = mirror.service.address;
      const sockets = [];
      for (let i = 0; i < 10; i++) {
        const socket = createConnection(port, '127.0.0.1');
        socket.on('error', () => undefined);
        await once(socket, 'connect');
        sockets.push(socket);
      }
      const answers = await Promise.all(
        sockets.map(async (socket) => {
          let text = '';
          if (socket.closed) return 'closed';
          socket.on('data', (chunk) => (text += String(chunk)));
          socket.write('GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n');
          const closed = new Promise<string>((resolve) => socket.once('close', () => resolve('closed')));
          const how = await Promise.race([
            closed,
            until(() => text.includes('\r\n\r\n'), 'an answer').then(() => 'answered'),
          ]);
          return how === 'closed' && text === '' ? 'closed' : text.split(' ')[1];
        }),
      );
      assert.deepEqual(answers.slice(0, 6), ['200', '200', '200', '429', '429', '429']);
      assert.deepEqual(new Set(answers.slice(6)), new Set(['closed']));
      for (const socket of sockets) socket.destroy();
      await until(async () => (await statusOf('/v2/')) === 200, 'there is room again');
    });
  });

  describe('passwords', () => {
    let file: string;

    beforeEach(async () => {
      file = join(directory, 'htpasswd');
      await writeFile(file, `# people\nada:${hashSync('lovelace', 4)}\nci-7:${hashSync('s3cret:x', 4)}\n`);
      await start({
        clients: {
          htpasswd: file,
          groups: [{ name: 'ci', users: ['ci-*'], allow: ['docker.io/acme/**'] }],
        },
      });
    });

    test('without, with a wrong and with a right one; on every path', async () => {
      for (const path of ['/v2/', ...pathsOf('acme/app')]) {
        const reply = await mirror.get(path);
        assert.equal(reply.status, 401, path);
        assert.match(String(reply.headers['www-authenticate']), /^Basic realm="layercache"/);
        assert.equal(errorOf(reply).code, 'UNAUTHORIZED');
        assert.equal(await statusOf(path, { headers: basic('ada', 'wrong') }), 401);
        assert.equal(await statusOf(path, { headers: basic('nobody', 'lovelace') }), 401);
        assert.equal(await statusOf(path, { headers: { authorization: 'Bearer x' } }), 401);
        assert.equal(await statusOf(path, { headers: basic('ada', 'lovelace') }), 200, path);
      }
      assert.equal(await statusOf('/v2/evil/app/manifests/1', { headers: basic('ci-7', 's3cret:x') }), 403);
      assert.equal(await statusOf('/v2/acme/app/manifests/1', { headers: basic('ci-7', 's3cret:x') }), 200);
      assert.ok(!mirror.log.includes('lovelace'));
      assert.ok(upstream.calls.every(({ headers }) => !headers.authorization?.startsWith('Basic')));
      await until(() => mirror.log.includes('"user":"ada"'), 'the access line names the user');
      assert.ok(mirror.log.includes('passwords cross the network unencrypted'));
    });

    test('that are guessed are soon not even looked at, and whoever is known goes on', async () => {
      assert.equal(await statusOf('/v2/', { headers: basic('ada', 'lovelace') }), 200);
      const guesses = [];
      for (let i = 0; i < 25; i++)
        guesses.push(await statusOf('/v2/', { headers: basic('ada', `guess ${i}`) }));
      assert.deepEqual(guesses.slice(0, 20), Array(20).fill(401));
      assert.deepEqual(guesses.slice(20), Array(5).fill(429));
      assert.equal(await statusOf('/v2/', { headers: basic('ada', 'lovelace') }), 200);
      mirror.clock.advance(60_001);
      assert.equal(await statusOf('/v2/', { headers: basic('ada', 'guess') }), 401);
    });

    test('that are guessed many at a time are no way around it, nor from a whole /64', async () => {
      await mirror.reload({ config: { clients: { htpasswd: file }, trustedProxies: ['127.0.0.1'] } });
      for (const from of [() => '10.1.1.1', (i: number) => `2001:db8::${i + 1}`]) {
        const statuses = await Promise.all(
          Array.from({ length: 100 }, (_, i) =>
            statusOf('/v2/', {
              headers: { ...basic('ada', `guess ${from(i)} ${i}`), 'x-forwarded-for': from(i) },
            }),
          ),
        );
        const compared = statuses.filter((status) => status === 401).length;
        assert.ok(compared > 0 && compared <= 21, `${compared} were compared`);
      }
      // Many who say the same are compared once.
      const same = await Promise.all(
        Array.from({ length: 100 }, () =>
          statusOf('/v2/', { headers: { ...basic('ci-7', 's3cret:x'), 'x-forwarded-for': '10.1.1.9' } }),
        ),
      );
      assert.deepEqual(new Set(same), new Set([200]));
    });

    test('may be switched off while they are compared', async () => {
      const dear = join(directory, 'htpasswd-dear');
      await writeFile(dear, `ada:${hashSync('lovelace', 10)}\n`);
      await mirror.reload({ config: { clients: { htpasswd: dear } } });
      const running = statusOf('/v2/', { headers: basic('ada', 'lovelace') });
      await new Promise((resolve) => setTimeout(resolve, 20));
      await mirror.reload({ config: {} });
      assert.equal(await running, 200);
    });

    test('are read again when the file changes, and one that cannot be used changes nothing', async () => {
      await writeFile(file, `ada:${hashSync('byron', 4)}\n`);
      await until(() => mirror.log.includes('htpasswd reloaded'), 'it was read');
      assert.equal(await statusOf('/v2/', { headers: basic('ada', 'lovelace') }), 401);
      assert.equal(await statusOf('/v2/', { headers: basic('ada', 'byron') }), 200);
      await writeFile(file, 'ada:plain\n');
      await utimes(file, new Date(), new Date(Date.now() + 5000));
      await until(() => mirror.log.includes('keeping the previous users'), 'it was refused');
      assert.ok(!mirror.log.includes('ada:plain'));
      assert.equal(await statusOf('/v2/', { headers: basic('ada', 'byron') }), 200);
    });
  });

  describe('TLS', () => {
    test('serves whole pulls, takes a new certificate while it runs, and no old protocol', async () => {
      const authority = await Authority.create(directory);
      const ca = await readFile(authority.certificate);
      const pair = await authority.sign('mirror');
      const files = { cert: join(directory, 'server.pem'), key: join(directory, 'server.key') };
      await copyFile(pair.cert, files.cert);
      await copyFile(pair.key, files.key);
      await start({ tls: files });
      sameBytes((await mirror.get(`/v2/acme/app/blobs/${layer.digest}`, { tls: { ca } })).body, layer.bytes);
      await assert.rejects(mirror.get('/v2/'), /certificate/);
      await assert.rejects(mirror.get('/v2/', { tls: { ca, maxVersion: 'TLSv1.1', minVersion: 'TLSv1.1' } }));
      const serial = async (): Promise<string> => {
        const socket = connectTls({ port: mirror.service.address.port, host: '127.0.0.1', ca });
        await once(socket, 'secureConnect');
        const { serialNumber } = socket.getPeerCertificate();
        socket.destroy();
        return serialNumber;
      };
      const before = await serial();
      const next = await authority.sign('mirror');
      await copyFile(next.cert, files.cert);
      await until(() => mirror.log.includes('new TLS certificate is invalid'), 'half a pair is seen');
      assert.equal(await serial(), before);
      await copyFile(next.key, files.key);
      await until(() => mirror.log.includes('certificate reloaded'), 'the new pair is taken');
      assert.notEqual(await serial(), before);
    });

    test('with clientCa nobody comes in without a certificate, and its name is the user', async () => {
      const authority = await Authority.create(directory);
      const [server, client] = [await authority.sign('mirror'), await authority.sign('ci-7')];
      await start({
        tls: { ...server, clientCa: authority.certificate },
        clients: { groups: [{ name: 'ci', users: ['ci-*'], allow: ['docker.io/acme/**'] }] },
      });
      const ca = await readFile(authority.certificate);
      const tls = { ca, cert: await readFile(client.cert), key: await readFile(client.key) };
      await assert.rejects(mirror.get('/v2/', { tls: { ca } }));
      assert.equal(await statusOf('/v2/acme/app/manifests/1', { tls }), 200);
      assert.equal(await statusOf('/v2/evil/app/manifests/1', { tls }), 403);
      await until(() => mirror.log.includes('"user":"ci-7"'), 'the access line names the user');
    });
  });

  describe('a configuration that is read again', () => {
    test('takes effect at once, keeps what has not changed, and names what has to wait', async () => {
      await start({});
      assert.equal(await statusOf('/v2/acme/app/manifests/1'), 200);
      const tokens = upstream.count('token');
      await mirror.reload({ config: { deny: ['docker.io/evil/**'], adminListen: '127.0.0.1:1' } });
      assert.equal(await statusOf('/v2/evil/app/manifests/1'), 403);
      assert.equal(await statusOf('/v2/acme/app/manifests/2'), 200);
      assert.equal(upstream.count('token'), tokens);
      await until(() => mirror.log.includes('"keys":["adminListen"]'), 'what has to wait is named');
      await mirror.reload({ config: { tags: { ttl: '1h' } } });
      assert.equal(await statusOf('/v2/evil/app/manifests/1'), 200);
      mirror.clock.advance(30 * 60_000);
      assert.equal((await mirror.get('/v2/acme/app/manifests/1')).headers['x-cache'], 'hit');
    });

    test('an upstream that leaves while layers are fetched ahead disturbs nobody', async () => {
      const layers = Array.from({ length: 12 }, () => randomBlob(100_000));
      const large = imageOf(layers);
      upstream.addImage('acme/large', large, '1');
      mirror = await TestMirror.start({
        upstream: 'http://127.0.0.1:1',
        upstreams: [{ registry: 'other.example', url: upstream.url }],
      });
      const path = (what: string) => `/v2/other.example/acme/large/${what}`;
      assert.equal(await statusOf(path('manifests/1')), 200);
      const slow = Promise.withResolvers<undefined>();
      upstream.script('blob', async (_call, _req, _res, go) => {
        await slow.promise;
        go();
      });
      const running = mirror.get(path(`blobs/${layers[0]!.digest}`));
      await until(() => upstream.count('blob') > 1, 'others are fetched ahead');
      await mirror.reload({ upstreams: [] });
      slow.resolve(undefined);
      sameBytes((await running).body, layers[0]!.bytes);
      assert.equal(await statusOf('/v2/'), 200);
      assert.equal(await statusOf(`${path('manifests/1')}?ns=other.example`), 404);
    });

    test('another upstream from the next request on, while what runs goes on with the old one', async () => {
      const other = await Upstream.start();
      try {
        const next = imageOf([randomBlob(1000)]);
        other.addImage('acme/app', next, 'new');
        await start({});
        const held = Promise.withResolvers<undefined>();
        upstream.script('blob', async (_call, _req, _res, go) => {
          await held.promise;
          go();
        });
        const running = mirror.get(`/v2/acme/app/blobs/${layer.digest}`);
        await until(() => upstream.count('blob') === 1, 'it runs');
        await mirror.reload({ upstream: other.url });
        assert.equal(await statusOf('/v2/acme/app/manifests/new'), 200);
        held.resolve(undefined);
        sameBytes((await running).body, layer.bytes);
      } finally {
        await other.stop();
      }
    });
  });
});
