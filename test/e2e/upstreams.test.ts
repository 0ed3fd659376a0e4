import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { afterEach, describe, test } from 'node:test';
import { errorOf, sameBytes } from '../support/http.ts';
import { blobOf, imageOf, randomBlob } from '../support/images.ts';
import { TestMirror, until, type MirrorOptions } from '../support/mirror.ts';
import { Upstream, type UpstreamOptions } from '../support/upstream.ts';

const login = { username: 'me', password: 's3cr3t-password' };
const accounts = { accounts: [login] };

describe('upstreams', () => {
  const image = imageOf([randomBlob(100_000)]);
  const layer = image.layers[0]!;
  const blobPath = `/v2/library/x/blobs/${layer.digest}`;
  let upstream: Upstream;
  let mirror: TestMirror;

  async function start(
    upstreamOptions: UpstreamOptions,
    options: Partial<MirrorOptions> = {},
  ): Promise<void> {
    upstream = await Upstream.start(upstreamOptions);
    upstream.addImage('library/x', image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url, ...options });
  }

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const get = (path = '/v2/library/x/manifests/1') => mirror.get(path);

  test('tokens: one for each repo, whatever is asked at once, kept until shortly before they expire', async () => {
    await start({ auth: 'bearer', tokenLifeSeconds: 100 }, { config: { tags: { ttl: 0 } } });
    upstream.addImage('library/y', image, '1');
    await Promise.all(
      Array.from({ length: 30 }, (_, i) => get(`/v2/library/${i % 2 ? 'x' : 'y'}/manifests/1`)),
    );
    assert.equal(upstream.count('token'), 2);
    assert.equal(upstream.count('manifest', { status: 401 }), 0);
    assert.equal(upstream.calls.find(({ kind }) => kind === 'token')?.url.includes('service=scripted'), true);
    mirror.clock.advance(89_000);
    await get();
    assert.equal(upstream.count('token'), 2);
    mirror.clock.advance(2_000);
    await get();
    assert.equal(upstream.count('token'), 3);
  });

  test('a token that the upstream takes back is replaced, and the client sees nothing of it', async () => {
    await start({ auth: 'bearer' }, { config: { tags: { ttl: 0 } } });
    await get();
    upstream.tokens.clear();
    assert.equal((await get()).status, 200);
    assert.equal(upstream.count('token'), 2);
  });

  test('Basic, and a login at the token server', async () => {
    for (const auth of ['basic', 'bearer'] as const) {
      await start({ auth, login, cdn: true }, { upstreamConfig: accounts });
      assert.equal((await get()).status, 200);
      sameBytes((await get(blobPath)).body, layer.bytes);
      const registry = upstream.calls.filter(({ kind }) => kind === 'manifest' || kind === 'blob');
      const scheme = auth === 'basic' ? /^Basic / : /^Bearer /;
      for (const { headers } of registry) assert.match(headers.authorization ?? '', scheme);
      if (auth === 'basic') await Promise.all([mirror.close(), upstream.stop()]);
    }
  });

  test('unknown or private is 404 at the client, without a challenge', async () => {
    await start({ auth: 'bearer' });
    upstream.script('manifest', (_call, _req, res) => {
      const challenge = `Bearer realm="${upstream.realm}",service="scripted",scope="repository:library/x:pull",error="insufficient_scope"`;
      res.writeHead(401, { 'www-authenticate': challenge }).end();
    });
    const reply = await get();
    assert.equal(reply.status, 404);
    assert.equal(reply.headers['www-authenticate'], undefined);
    assert.ok(upstream.count('token') <= 2);
    assert.equal((await get()).status, 404);
    assert.equal(upstream.count('manifest'), 1);
  });

  test('refused credentials are an account fault: 503, stale if held, not tried with each request', async () => {
    await start(
      { auth: 'bearer', login },
      { upstreamConfig: { accounts: [{ ...login, password: 'wrong' }] } },
    );
    for (let i = 0; i < 5; i++) {
      const reply = await get();
      assert.equal(reply.status, 503);
      assert.match(errorOf(reply).message, /account me/);
    }
    // Once for the repo, and once to see whether it is the repo or the login.
    assert.equal(upstream.count('token'), 2);
    assert.ok(!mirror.log.includes('wrong'));
  });

  test('an ill token server: what is cached is served, the rest is 503', async () => {
    await start({ auth: 'bearer', tokenLifeSeconds: 60 });
    await get();
    await get(`/v2/library/x/blobs/${image.config.digest}`);
    await get(blobPath);
    await until(async () => (await mirror.files('blobs')).length === 3, 'all is stored');
    mirror.clock.advance(10 * 60_000);
    for (const answer of ['', '{}', '{"token":', '<html>']) {
      upstream.script('token', (_call, _req, res) => void res.end(answer));
      assert.equal((await get()).headers['x-cache'], 'stale');
      assert.equal((await get(blobPath)).headers['x-cache'], 'hit');
      assert.equal((await get('/v2/library/x/manifests/2')).status, 503);
      upstream.behave();
    }
  });

  test('a redirect: followed without Authorization, coding identity', async () => {
    await start({ auth: 'bearer', cdn: true });
    sameBytes((await get(blobPath)).body, layer.bytes);
    const cdn = upstream.calls.find(({ kind }) => kind === 'cdn');
    assert.equal(cdn?.headers.authorization, undefined);
    assert.equal(cdn?.headers['accept-encoding'], 'identity');
    assert.equal(
      await mirror.metric(
        'layercache_upstream_requests_total{registry="docker.io",kind="redirect",status="206"}',
      ),
      1,
    );
  });

  test('a relative redirect keeps Authorization; a signed link that is refused is asked for again, once', async () => {
    await start({ auth: 'bearer', cdn: true });
    upstream.script(
      'blob',
      (call, _req, res) => void res.writeHead(307, { location: `./${call.reference}?again` }).end(),
      {
        times: 1,
      },
    );
    upstream.script('cdn', (_call, _req, res) => void res.writeHead(403).end(), { times: 1 });
    sameBytes((await get(blobPath)).body, layer.bytes);
    assert.ok(
      upstream.calls.filter(({ kind }) => kind === 'blob').every(({ headers }) => headers.authorization),
    );
    assert.equal(upstream.count('cdn'), 2);
  });

  for (const [title, location] of [
    ['a loop', ''],
    ['nothing', undefined],
    ['a file', 'file:///etc/passwd'],
    ['a name with credentials', 'http://user:pass@localhost:1/'],
    ['cloud metadata', 'http://169.254.169.254/latest/meta-data'],
    ['everywhere', 'http://0.0.0.0:1/'],
    ['cloud metadata in IPv6', 'http://[::ffff:169.254.169.254]/'],
    ['odd spelling', 'http://0xa9.254.43518/'],
  ] as const) {
    test(`a redirect to ${title} is refused`, async () => {
      await start({});
      upstream.script(
        'blob',
        (_call, _req, res) => void res.writeHead(302, location === undefined ? {} : { location }).end(),
      );
      const reply = await get(blobPath);
      assert.equal(reply.status, 502);
      assert.equal(reply.headers.location, undefined);
      assert.ok(upstream.count('blob') <= 6);
    });
  }

  test('a realm on a foreign host is not contacted, and named in the log', async () => {
    await start({ auth: 'bearer' });
    upstream.script(
      'ping',
      (_call, _req, res) =>
        void res.writeHead(401, { 'www-authenticate': 'Bearer realm="http://auth.example.org/token"' }).end(),
    );
    upstream.script(
      'manifest',
      (_call, _req, res) =>
        void res.writeHead(401, { 'www-authenticate': 'Bearer realm="http://auth.example.org/token"' }).end(),
    );
    assert.equal((await get()).status, 502);
    await until(
      () => mirror.log.includes('realm http://auth.example.org/token: does not belong'),
      'the log names it',
    );
    assert.equal(
      await mirror.metric(
        'layercache_upstream_requests_total{registry="docker.io",kind="token",status="error"}',
      ),
      0,
    );
  });

  test('a challenge that leads nowhere harms one request alone', async () => {
    await start({ auth: 'bearer' }, { config: { tags: { ttl: 0 } } });
    await get();
    upstream.script(
      'manifest',
      (_call, _req, res) =>
        void res.writeHead(401, { 'www-authenticate': 'Bearer realm="http://auth.example.org/token"' }).end(),
      {
        times: 2,
        match: ({ repo }) => repo === 'library/bad',
      },
    );
    assert.equal((await get('/v2/library/bad/manifests/1')).status, 502);
    const reply = await get();
    assert.equal(reply.headers['x-cache'], 'revalidated');
  });

  test('a CDN that takes no HEAD: the size comes from one byte', async () => {
    await start({ auth: 'bearer', cdn: true });
    upstream.script('cdn', (_call, _req, res) => void res.writeHead(403).end(), {
      match: ({ method }) => method === 'HEAD',
    });
    const reply = await mirror.head(blobPath);
    assert.equal(reply.status, 200);
    assert.equal(reply.headers['content-length'], String(layer.bytes.length));
  });

  test('a HEAD that cannot be redeemed pins nothing: the GET by tag has the last word', async () => {
    await start({});
    upstream.script(
      'manifest',
      (_call, _req, res) => {
        const digest = `sha256:${'0'.repeat(64)}`;
        res
          .writeHead(200, {
            'docker-content-digest': digest,
            'content-type': 'application/x',
            'content-length': 6,
          })
          .end();
      },
      { times: 1 },
    );
    const reply = await get();
    assert.equal(reply.status, 200);
    assert.deepEqual(reply.body, image.manifest.bytes);
    assert.equal((await get()).headers['x-cache'], 'hit');
  });

  test('the deadline lies over token and small blob too, however slowly they drip', async () => {
    await start({ auth: 'bearer' }, { config: { fetch: { firstByteTimeout: '300ms' } } });
    const drip = (): void => {
      upstream.script(
        'token',
        (_call, _req, res) => void res.writeHead(200, { 'content-length': 500 }).write('{'),
        { times: 1 },
      );
      upstream.script(
        'blob',
        (_call, _req, res) => void res.writeHead(200, { 'content-length': 500 }).write('x'),
      );
    };
    drip();
    assert.equal((await get()).status, 504);
    await get();
    assert.equal((await get(`/v2/library/x/blobs/${image.config.digest}`)).status, 504);
  });

  test('5xx is tried again, a blob up to four times; 429 is not', async () => {
    await start({});
    upstream.script('manifest', (_call, _req, res) => void res.writeHead(502).end(), { times: 1 });
    assert.equal((await get()).status, 200);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 2);
    upstream.forget();
    upstream.script('blob', (_call, _req, res) => void res.writeHead(500).end());
    assert.equal((await get(blobPath)).status, 503);
    assert.equal(upstream.count('blob'), 4);
    upstream.behave();
    upstream.script('blob', (_call, _req, res) => void res.writeHead(429).end());
    assert.equal((await get(blobPath)).status, 429);
    assert.equal(upstream.count('blob'), 5);
  });

  test('silence ends at the deadline over everything before the first byte', async () => {
    await start({}, { config: { fetch: { firstByteTimeout: '1s' } } });
    upstream.script('manifest', () => undefined);
    upstream.script('blob', () => undefined);
    for (const path of ['/v2/library/x/manifests/1', blobPath]) {
      const reply = await get(path);
      assert.equal(reply.status, 504);
      assert.equal(errorOf(reply).code, 'UNAVAILABLE');
      // The host is not asked for a while.
      mirror.clock.advance(5000);
    }
    assert.equal(upstream.calls.length, 3);
  });

  test('answers that are something else never become content', async () => {
    await start({});
    const answers: Record<string, string>[] = [
      { 'content-type': 'text/html' },
      { 'content-encoding': 'gzip' },
    ];
    for (const headers of answers) {
      upstream.script('blob', (_call, _req, res) => void res.writeHead(200, headers).end('<html>'), {
        times: 2,
      });
      // Once more without a range, in case it was that.
      assert.equal((await get(blobPath)).status, 502);
    }
    sameBytes((await get(blobPath)).body, layer.bytes);
  });

  test('a HEAD that is refused, or tells too little, becomes a GET', async () => {
    await start({}, { config: { tags: { ttl: 0 } } });
    for (const status of [405, 403, 200]) {
      upstream.forget();
      upstream.script('manifest', (_call, _req, res) => void res.writeHead(status).end(), {
        match: ({ method }) => method === 'HEAD',
      });
      const reply = await mirror.head('/v2/library/x/manifests/1');
      assert.equal(reply.headers['content-length'], String(image.manifest.bytes.length));
      assert.equal(upstream.count('manifest', { method: 'GET' }), 1);
      upstream.behave();
    }
  });

  test('nothing of the client reaches the upstream; nothing of the upstream but content reaches the client', async () => {
    await start({ auth: 'bearer', cdn: true });
    const headers = {
      authorization: 'Basic c2VjcmV0LW9mLWNsaWVudA==',
      cookie: 'client-cookie=1',
      'proxy-authorization': 'Basic client-proxy',
      'x-forwarded-for': '203.0.113.7',
      'user-agent': 'client-agent/1',
      accept: 'application/x-client',
    };
    for (const path of ['/v2/library/x/manifests/1', blobPath]) {
      const reply = await mirror.get(path, { headers });
      assert.equal(reply.status, 200);
      for (const name of ['set-cookie', 'location', 'www-authenticate', 'server'])
        assert.equal(reply.headers[name], undefined);
    }
    const seen = JSON.stringify(upstream.calls.map((call) => call.headers));
    for (const value of Object.values(headers)) assert.ok(!seen.includes(value), value);
    assert.match(seen, /"user-agent":"layercache"/);
  });

  test('no secret reaches the log, a metric or the CDN', async () => {
    await start({ auth: 'bearer', cdn: true, login }, { upstreamConfig: accounts });
    await get();
    await get(blobPath);
    upstream.script('cdn', (_call, _req, res) => void res.writeHead(403).end());
    assert.equal((await get(`/v2/library/x/blobs/${image.config.digest}`)).status, 502);
    await mirror.get(`/v2/library/x/nothing?password=s3cr3t-query`, {
      headers: { authorization: 'Bearer s3cr3t' },
    });
    const cdn = JSON.stringify(
      upstream.calls.filter(({ kind }) => kind === 'cdn').map((call) => call.headers),
    );
    const metrics = await mirror.metrics();
    await mirror.stop();
    for (const place of [mirror.log, metrics, cdn]) {
      assert.ok(!place.includes('s3cr3t'));
      assert.ok(!place.includes(Buffer.from(`${login.username}:${login.password}`).toString('base64')));
    }
  });

  test('sha512 digests are served and verified as such', async () => {
    await start({});
    const bytes = randomBlob(70_000).bytes;
    const { createHash } = await import('node:crypto');
    const digest = `sha512:${createHash('sha512').update(bytes).digest('hex')}` as typeof layer.digest;
    upstream.addBlob('library/x', { bytes, digest });
    const reply = await get(`/v2/library/x/blobs/${digest}`);
    sameBytes(reply.body, bytes);
    assert.equal(reply.headers['docker-content-digest'], digest);
    const wrong = `sha512:${'0'.repeat(128)}` as typeof layer.digest;
    upstream.addBlob('library/x', { bytes: blobOf('x').bytes, digest: wrong });
    assert.equal((await get(`/v2/library/x/blobs/${wrong}`)).status, 502);
  });
});

test('an upstream that does not speak HTTP is 502, and the process lives', async () => {
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.end('HTTP/1.1 429 Too Many Requests\nRetry-After: 60\n\nToo Many Requests (HAP429).');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const mirror = await TestMirror.start({ upstream: `http://127.0.0.1:${port}` });
  assert.ok([502, 503].includes((await mirror.get('/v2/library/x/manifests/1')).status));
  assert.equal((await mirror.get('/v2/')).status, 200);
  await mirror.close();
  server.close();
});
