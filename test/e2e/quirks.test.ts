import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { errorOf, sameBytes } from '../support/http.ts';
import { imageOf, indexOf, manifestOf, ociIndex, ociManifest, randomBlob } from '../support/images.ts';
import { TestMirror } from '../support/mirror.ts';
import { Upstream, type Script, type UpstreamOptions } from '../support/upstream.ts';

/** Registries have their ways; each of these is somebody's. */
describe('ways of registries', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const image = imageOf([randomBlob(200_000)]);
  const layer = image.layers[0]!;

  async function start(
    options: UpstreamOptions = {},
    upstreamConfig: Record<string, unknown> = {},
    config: Record<string, unknown> = {},
  ): Promise<void> {
    upstream = await Upstream.start(options);
    upstream.addImage('org/app', image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url, upstreamConfig, config });
  }

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const challenge =
    (text: string): Script =>
    (_call, _req, res) =>
      void res.writeHead(401, text === '' ? {} : { 'www-authenticate': text }).end();

  async function pulls(): Promise<void> {
    assert.equal((await mirror.head('/v2/org/app/manifests/1')).status, 200);
    sameBytes((await mirror.get('/v2/org/app/manifests/1')).body, image.manifest.bytes);
    sameBytes((await mirror.get(`/v2/org/app/blobs/${layer.digest}`)).body, layer.bytes);
    assert.equal((await mirror.get('/v2/org/app/tags/list')).status, 200);
  }

  test('manifests, tags and lists behind redirects to another registry (registry.k8s.io)', async () => {
    const behind = await Upstream.start();
    try {
      behind.addImage('prod/org/app', image, '1');
      await start();
      for (const kind of ['manifest', 'blob', 'tags'] as const) {
        upstream.script(kind, (call, _req, res) => {
          const location = `${behind.url}${call.url.replace('/v2/', '/v2/prod/').split('?')[0] ?? ''}`;
          res.writeHead(307, { location }).end();
        });
      }
      await pulls();
      assert.ok(behind.calls.every(({ headers }) => headers.authorization === undefined));
    } finally {
      await behind.stop();
    }
  });

  test('a challenge on /v2/ alone, and none with the 401 itself (gcr.io)', async () => {
    await start({ auth: 'bearer' });
    upstream.script('manifest', challenge(''), {
      match: ({ headers }) => headers.authorization === undefined,
    });
    upstream.script('blob', challenge(''), { match: ({ headers }) => headers.authorization === undefined });
    await pulls();
  });

  test('no challenge on /v2/, but where something is asked for; without scope, unquoted, twice', async () => {
    for (const text of [
      (realm: string) => `Bearer realm="${realm}",service="scripted"`,
      (realm: string) => `bearer realm=${realm}, service=scripted, scope=repository:org/app:pull`,
      (realm: string) => `Negotiate, Basic realm="x", Bearer service="scripted",realm="${realm}"`,
    ]) {
      await start({ auth: 'bearer' });
      upstream.script('ping', (_call, _req, res) => void res.writeHead(200).end('{}'));
      for (const kind of ['manifest', 'blob', 'tags'] as const)
        upstream.script(kind, challenge(text(upstream.realm)), {
          match: ({ headers }) => headers.authorization === undefined,
        });
      await pulls();
      await mirror.close();
      await upstream.stop();
    }
    await start();
  });

  test('an expired token is challenged towards a realm that is no good (nvcr.io)', async () => {
    await start({ auth: 'bearer' });
    await pulls();
    upstream.tokens.clear();
    const dead = `Bearer realm="${upstream.realm.replace('/token', '/dead')}",error="invalid_token"`;
    upstream.script('manifest', challenge(dead), {
      match: ({ headers }) =>
        headers.authorization !== undefined && !upstream.tokens.has(`${headers.authorization} org/app`),
    });
    mirror.clock.advance(10 * 60_000);
    assert.equal((await mirror.get('/v2/org/app/manifests/1')).headers['x-cache'], 'revalidated');
    assert.ok(!upstream.calls.some(({ url }) => url.startsWith('/dead')));
  });

  test('a realm that moves, while the old one says no to everything', async () => {
    for (const status of [401, 403, 404, 410]) {
      await start({ auth: 'bearer' }, { tags: { ttl: 0 } });
      await pulls();
      upstream.script('token', (_call, _req, res) => void res.writeHead(status).end(), {
        match: ({ url }) => !url.startsWith('/new'),
      });
      const moved = `Bearer realm="${upstream.realm.replace('/token', '/new/token')}",service="scripted"`;
      for (const kind of ['ping', 'manifest', 'blob', 'tags'] as const)
        upstream.script(kind, challenge(moved), {
          match: ({ headers }) => headers.authorization === undefined,
        });
      upstream.addImage('org/other', image, '1');
      mirror.clock.advance(10 * 60_000);
      assert.equal((await mirror.get('/v2/org/other/manifests/1')).status, 200, `${status}`);
      assert.equal((await mirror.get('/v2/org/app/manifests/1')).status, 200);
      await mirror.close();
      await upstream.stop();
    }
    await start();
  });

  test('realms that differ by repo, beside repos that are open', async () => {
    await start({ auth: 'bearer' });
    for (const repo of ['one/app', 'two/app', 'open/app']) upstream.addImage(repo, image, '1');
    upstream.script('ping', (_call, _req, res) => void res.writeHead(200).end('{}'));
    for (const repo of ['one', 'two']) {
      upstream.script('manifest', challenge(`Bearer realm="${upstream.realm}/${repo}",service="scripted"`), {
        match: (call) => call.repo === `${repo}/app` && call.headers.authorization === undefined,
      });
      upstream.script('token', (_call, _req, res) => void res.writeHead(401).end(), {
        match: (call) => call.url.includes(`/${repo}?`) && call.repo !== `${repo}/app`,
      });
    }
    upstream.script(
      'manifest',
      (call, _req, res) => {
        assert.equal(call.headers.authorization, undefined);
        res.writeHead(200, { 'content-type': image.manifest.mediaType }).end(image.manifest.bytes);
      },
      { match: (call) => call.repo === 'open/app' },
    );
    for (const repo of ['one', 'two', 'open', 'one', 'two', 'open'])
      assert.equal((await mirror.get(`/v2/${repo}/app/manifests/1`)).status, 200, repo);
  });

  test('a token server that takes POST alone', async () => {
    const login = { username: 'u', password: 'p' };
    await start({ auth: 'bearer', login }, { accounts: [login] });
    upstream.script('token', (_call, _req, res) => void res.writeHead(405).end(), {
      match: ({ method }) => method === 'GET',
    });
    upstream.script('token', (_call, req, res) => {
      let form = '';
      req.on('data', (chunk) => (form += String(chunk)));
      req.on('end', () => {
        const { grant_type, username, password, scope } = Object.fromEntries(new URLSearchParams(form));
        assert.deepEqual([grant_type, username, password], ['password', 'u', 'p']);
        upstream.tokens.add(`Bearer t0ken ${scope?.split(':')[1] ?? ''}`);
        res.writeHead(200).end('{"access_token":"t0ken"}');
      });
    });
    await pulls();
  });

  test('a token server that refuses what is unknown or private (ghcr.io) is 404', async () => {
    await start({ auth: 'bearer' });
    for (const status of [401, 403]) {
      upstream.script('token', (_call, _req, res) => void res.writeHead(status).end('{}'));
      const reply = await mirror.get(`/v2/org/secret${status}/manifests/1`);
      assert.equal(reply.status, 404);
      assert.equal(reply.headers['www-authenticate'], undefined);
      upstream.behave();
    }
    await pulls();
  });

  test('a token server whose answers have their own form', async () => {
    for (const answer of [
      (token: string) => ({ access_token: token }),
      (token: string) => ({ token, expires_in: '300', issued_at: 'garbage' }),
      (token: string) => ({ token, expires_in: 1e12 }),
      (token: string) => ({ token, expires_in: -1, extra: {} }),
    ]) {
      await start({ auth: 'bearer' });
      upstream.script('token', (_call, _req, res) => {
        upstream.tokens.add('Bearer t0ken org/app');
        res.writeHead(200).end(JSON.stringify(answer('t0ken')));
      });
      await pulls();
      assert.equal(upstream.count('token'), 1);
      await mirror.close();
      await upstream.stop();
    }
    await start();
  });

  test('cookies are neither kept nor passed on (quay.io)', async () => {
    await start({ cdn: true });
    await pulls();
    await pulls();
    assert.ok(upstream.calls.every(({ headers }) => headers.cookie === undefined));
    assert.equal((await mirror.get('/v2/org/app/manifests/1')).headers['set-cookie'], undefined);
  });

  test('Basic alone (Nexus, ECR): for the registry, not for where it redirects to', async () => {
    const login = { username: 'AWS', password: 'p' };
    await start({ auth: 'basic', login, cdn: true }, { accounts: [login] });
    await pulls();
    assert.ok(upstream.count('cdn') > 0);
    assert.equal(upstream.count('token'), 0);
  });

  test('indexes: nested, sparse, empty; children that are missing are 404', async () => {
    await start();
    const inner = indexOf([image]);
    const absent = imageOf([randomBlob(10)]);
    const outer = manifestOf(
      {
        schemaVersion: 2,
        mediaType: ociIndex,
        manifests: [inner, absent.manifest].map(({ digest, bytes, mediaType }) => ({
          mediaType,
          digest,
          size: bytes.length,
        })),
      },
      ociIndex,
    );
    const empty = indexOf([]);
    upstream.addManifest('org/app', inner);
    upstream.addManifest('org/app', outer, 'outer');
    upstream.addManifest('org/app', empty, 'empty');
    sameBytes((await mirror.get('/v2/org/app/manifests/outer')).body, outer.bytes);
    sameBytes((await mirror.get(`/v2/org/app/manifests/${inner.digest}`)).body, inner.bytes);
    sameBytes((await mirror.get('/v2/org/app/manifests/empty')).body, empty.bytes);
    assert.equal((await mirror.get(`/v2/org/app/manifests/${absent.manifest.digest}`)).status, 404);
    await pulls();
    await mirror.get(`/v2/org/app/blobs/${image.config.digest}`);
    await upstream.stop();
    mirror.clock.advance(10 * 60_000);
    // One image of it is whole, two levels down.
    assert.equal((await mirror.get('/v2/org/app/manifests/outer')).headers['x-cache'], 'stale');
    assert.equal((await mirror.get('/v2/org/app/manifests/empty')).headers['x-cache'], 'stale');
  });

  test('schema 1 is refused with a remedy; large manifests pass up to maxManifestBytes, and none is cut', async () => {
    await start({}, {}, { fetch: { maxManifestBytes: '5MB' } });
    const schema1 = manifestOf(
      { schemaVersion: 1, name: 'x' },
      'application/vnd.docker.distribution.manifest.v1+prettyjws',
    );
    const large = (bytes: number) =>
      manifestOf(
        {
          ...(JSON.parse(image.manifest.bytes.toString()) as object),
          annotations: { padding: 'x'.repeat(bytes) },
        },
        ociManifest,
      );
    upstream.addManifest('org/app', schema1, 'old');
    const refused = await mirror.get('/v2/org/app/manifests/old');
    assert.equal(refused.status, 502);
    assert.match(errorOf(refused).message, /schema 1 manifests are not supported: push the image again/);
    upstream.addManifest('org/app', large(3_900_000), 'large');
    const passed = await mirror.get('/v2/org/app/manifests/large');
    sameBytes(passed.body, large(3_900_000).bytes);
    upstream.addManifest('org/app', large(5_000_000), 'huge');
    const huge = await mirror.get('/v2/org/app/manifests/huge');
    assert.equal(huge.status, 502);
    assert.match(errorOf(huge).message, /larger than 5000000 bytes/);
  });
});
