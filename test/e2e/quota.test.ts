import assert from 'node:assert/strict';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { afterEach, describe, test } from 'node:test';
import { errorOf, type Reply } from '../support/http.ts';
import { imageOf, randomBlob, type Image } from '../support/images.ts';
import { TestMirror, until, type MirrorOptions } from '../support/mirror.ts';
import { Upstream, type Script, type UpstreamOptions } from '../support/upstream.ts';

const minute = 60_000;
const anonymousLeft = 'layercache_quota_remaining{registry="docker.io",account="anonymous"}';

describe('pulls', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const images: Image[] = Array.from({ length: 60 }, () => imageOf([]));

  async function start(
    options: UpstreamOptions = {},
    mirrorOptions: Partial<MirrorOptions> = {},
  ): Promise<void> {
    upstream = await Upstream.start({ auth: 'bearer', ...options });
    images.forEach((image, i) => upstream.addImage('library/x', image, `t${i}`));
    mirror = await TestMirror.start({ upstream: upstream.url, ...mirrorOptions });
  }

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const get = (tag: string | number): Promise<Reply> =>
    mirror.get(`/v2/library/x/manifests/${typeof tag === 'number' ? `t${tag}` : tag}`);
  const gets = (): number => upstream.count('manifest', { method: 'GET' });

  function assertSpent(reply: Reply): void {
    assert.equal(reply.status, 429);
    const { code, message } = errorOf(reply);
    assert.equal(code, 'TOOMANYREQUESTS');
    assert.match(message, /account anonymous \(192\.0\.2\.1\) has spent its pulls of 3 in 6 h; .* 6 h/);
    assert.equal(reply.headers['retry-after'], '21600');
  }

  /** Three pulls are spent; twenty requests more are refused without asking for a manifest. */
  async function assertHeldBack(): Promise<void> {
    const before = gets();
    const replies = await Promise.all(Array.from({ length: 20 }, (_, i) => get(i + 3)));
    replies.forEach(assertSpent);
    assert.equal(gets(), before);
    assert.equal(upstream.overspent, 0);
    assert.equal((await get(0)).status, 200);
    assert.equal(
      (await mirror.get(`/v2/library/x/manifests/${images[1]!.manifest.digest}`)).headers['x-cache'],
      'hit',
    );
    assert.equal(await mirror.metric('layercache_quota_limit{registry="docker.io",account="anonymous"}'), 3);
    assert.equal(await mirror.metric(anonymousLeft), 0);
  }

  test('what is spent is not asked for, over a restart too; what is cached goes on', async () => {
    await start({ pulls: 3 });
    for (let i = 0; i < 3; i++) {
      assert.equal((await get(i)).status, 200);
      assert.equal(await mirror.metric(anonymousLeft), 2 - i);
    }
    await assertHeldBack();
    await mirror.restart();
    await assertHeldBack();
    assert.ok(
      (await mirror.metric(
        'layercache_admissions_refused_total{registry="docker.io",reason="quota-spent"}',
      )) >= 20,
    );
  });

  test('fifty cold tags at once overspend nothing', async () => {
    await start({ pulls: 3 });
    const replies = await Promise.all(Array.from({ length: 50 }, (_, i) => get(i)));
    assert.deepEqual(
      [200, 429].map((status) => replies.filter((reply) => reply.status === status).length),
      [3, 47],
    );
    assert.equal(upstream.overspent, 0);
    assert.equal(gets(), 3);
  });

  test('a tag that has moved is served as it was, to HEAD as to GET, however often it moves', async () => {
    await start({ pulls: 1 });
    await get(0);
    for (const moved of [images[10]!, images[11]!]) {
      upstream.addManifest('library/x', moved.manifest, 't0');
      mirror.clock.advance(6 * minute);
      for (const method of ['HEAD', 'GET', 'GET']) {
        const reply = await mirror.get('/v2/library/x/manifests/t0', { method });
        assert.equal(reply.headers['docker-content-digest'], images[0]!.manifest.digest);
        assert.equal(reply.headers['x-cache'], 'stale');
        assert.equal(reply.headers['x-cache-reason'], 'quota-spent');
      }
    }
    upstream.spent.clear();
    mirror.clock.advance(6 * minute);
    assert.equal((await get(0)).headers['docker-content-digest'], images[11]!.manifest.digest);
  });

  test('any HEAD shows that pulls are back, and by digest one is asked a minute', async () => {
    await start({ pulls: 1 });
    await get(0);
    const byDigest = `/v2/library/x/manifests/${images[5]!.manifest.digest}`;
    assert.equal((await mirror.get(byDigest)).status, 429);
    upstream.spent.clear();
    const heads = upstream.count('manifest', { method: 'HEAD' });
    mirror.clock.advance(59_000);
    assert.equal((await mirror.get(byDigest)).status, 429);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), heads);
    mirror.clock.advance(1_000);
    assert.equal((await mirror.get(byDigest)).status, 200);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), heads + 1);
    assert.equal((await get(7)).status, 429);
    upstream.spent.clear();
    assert.equal((await get(8)).status, 200);
    assert.equal(upstream.overspent, 0);
  });

  test('a limit that only shows when it refuses: HEAD and blobs go on, and one pull tries in time', async () => {
    const image = imageOf([randomBlob(1000)]);
    await start();
    upstream.addImage('library/x', image, 'y');
    const refuse: Script = (_call, _req, res) =>
      void res
        .writeHead(429, { 'content-type': 'application/json', 'retry-after': '120' })
        .end('{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}');
    upstream.script('manifest', refuse, { match: ({ method }) => method === 'GET' });
    const reply = await get(0);
    assert.equal(reply.status, 429);
    assert.equal(reply.headers['retry-after'], '60', 'nobody is sent away for longer where nobody counts');
    for (let i = 0; i < 10; i++) assert.equal((await get(i)).status, 429);
    assert.equal(gets(), 1);
    assert.equal((await mirror.head('/v2/library/x/manifests/t9')).status, 200);
    assert.equal((await mirror.get(`/v2/library/x/blobs/${image.layers[0]!.digest}`)).status, 200);
    mirror.clock.advance(2 * minute);
    await Promise.all([get(1), get(2), get(3)]);
    assert.equal(gets(), 2);
    upstream.behave();
    mirror.clock.advance(2 * minute);
    assert.equal((await get(4)).status, 200);
    assert.equal((await get(5)).status, 200);
  });

  test('the end of the pulls as 503, for clients that go on to their next mirror', async () => {
    await start({ pulls: 1 }, { config: { quota: { whenSpent: '503' } } });
    await get(0);
    const reply = await get(1);
    assert.equal(reply.status, 503);
    assert.equal(errorOf(reply).code, 'UNAVAILABLE');
    assert.equal(reply.headers['retry-after'], '21600');
  });

  test('what gives nothing spends nothing, and figures of others do not count', async () => {
    await start({ pulls: 10, cdn: true });
    const image = imageOf([randomBlob(1000)]);
    upstream.addImage('library/x', image, 'y');
    await get(0);
    for (let i = 0; i < 20; i++) {
      const digest = `sha256:${String(i).padStart(64, '0')}`;
      assert.equal((await mirror.get(`/v2/library/x/manifests/${digest}`)).status, 404);
    }
    assert.equal(await mirror.metric(anonymousLeft), 9);
    upstream.script('cdn', (_call, _req, res, next) => {
      res.setHeader('ratelimit-remaining', '0;w=60');
      next();
    });
    assert.equal((await mirror.get(`/v2/library/x/blobs/${image.layers[0]!.digest}`)).status, 200);
    assert.equal((await get(1)).status, 200);
  });

  test('fifty cold digests at once, before anything is known, overspend nothing', async () => {
    await start({ pulls: 3 });
    const replies = await Promise.all(
      images.slice(0, 50).map(({ manifest }) => mirror.get(`/v2/library/x/manifests/${manifest.digest}`)),
    );
    assert.equal(replies.filter(({ status }) => status === 200).length, 3);
    assert.equal(upstream.overspent, 0);
  });

  test('figures that are none are passed over', async () => {
    await start();
    for (const figure of ['', 'abc', '-1', '1e9', '99999999999999', ';w=5']) {
      upstream.script(
        'manifest',
        (_call, _req, res, next) => {
          res.setHeader('ratelimit-limit', figure);
          res.setHeader('ratelimit-remaining', figure);
          next();
        },
        { times: 2 },
      );
      assert.equal(
        (await get(['', 'abc', '-1', '1e9', '99999999999999', ';w=5'].indexOf(figure))).status,
        200,
      );
    }
    assert.doesNotMatch(await mirror.metrics(), /layercache_quota_limit\{/);
  });

  test('an image that is not counted costs nothing of what is left', async () => {
    await start({ pulls: 2 });
    upstream.addImage('library/free', imageOf([]), '1');
    upstream.script(
      'manifest',
      (_call, _req, res) => {
        const { bytes, mediaType, digest } = images[50]!.manifest;
        res.writeHead(200, { 'content-type': mediaType, 'docker-content-digest': digest }).end(bytes);
      },
      { match: ({ method, reference }) => method === 'GET' && reference === images[50]!.manifest.digest },
    );
    await get(0);
    assert.equal((await get(50)).status, 200);
    assert.equal(await mirror.metric(anonymousLeft), 1);
    assert.equal((await get(1)).status, 200);
  });

  describe('of several accounts', () => {
    const logins = [
      { username: 'ann', password: 's3cr3t-ann' },
      { username: 'bob', password: 's3cr3t-bob' },
    ];
    const upstreamConfig = { accounts: logins };

    test('all are used, and the client notices nothing of it', async () => {
      await start({ pulls: 3, logins }, { upstreamConfig });
      for (let i = 0; i < 6; i++) assert.equal((await get(i)).status, 200);
      assert.deepEqual([...upstream.spent].sort(), [
        ['ann', 3],
        ['bob', 3],
      ]);
      const reply = await get(6);
      assert.equal(reply.status, 429);
      assert.match(errorOf(reply).message, /account ann .* account bob /);
      assert.equal(upstream.overspent, 0);
      assert.ok(upstream.count('token') <= 3);
    });

    test('one that turns out to be spent hands over', async () => {
      await start({ logins }, { upstreamConfig });
      const refuse: Script = (_call, _req, res) =>
        void res.writeHead(429, { 'content-type': 'application/json' }).end('{}');
      upstream.script('manifest', refuse, {
        match: ({ method, headers }) => method === 'GET' && headers.authorization?.endsWith('-ann') === true,
      });
      for (let i = 0; i < 4; i++) assert.equal((await get(i)).status, 200);
      assert.equal(upstream.count('manifest', { method: 'GET', status: 429 }), 1);
    });

    test('one whose password is wrong is set aside, and looked at again when its password has changed', async () => {
      const directory = await mkdtemp(join(tmpdir(), 'layercache-test-'));
      const file = join(directory, 'password');
      await writeFile(file, 'wr0ng-password\n');
      const accounts = [{ username: 'ann', password: { file } }, logins[1]];
      await start({ logins }, { upstreamConfig: { accounts } });
      for (let i = 0; i < 10; i++) assert.equal((await get(i)).status, 200);
      assert.ok(upstream.count('token') <= 4);
      await until(() => /"account":"ann".*account disabled/.test(mirror.log), 'the log tells');
      const aside = 'layercache_account_refused{registry="docker.io",account="ann"}';
      assert.equal(await mirror.metric(aside), 1);
      await writeFile(file, `${logins[0]!.password}\n`);
      mirror.clock.advance(11_000);
      await get(20);
      await until(async () => (await mirror.metric(aside)) === 0, 'its password is seen to have changed');
      const metrics = await mirror.metrics();
      for (const place of [mirror.log, metrics]) assert.doesNotMatch(place, /wr0ng|s3cr3t/);
      await rm(directory, { recursive: true });
    });

    test('a wrong password is sent once, however many repos are asked for at once', async () => {
      const accounts = [{ username: 'ann', password: 'wr0ng' }, logins[1]];
      await start({ logins }, { upstreamConfig: { accounts } });
      for (let i = 0; i < 30; i++) upstream.addImage(`library/r${i}`, images[i]!, '1');
      const replies = await Promise.all(
        Array.from({ length: 30 }, (_, i) => mirror.get(`/v2/library/r${i}/manifests/1`)),
      );
      for (const reply of replies) assert.equal(reply.status, 200);
      assert.ok(upstream.calls.filter(({ url }) => url.includes('account=ann')).length <= 2);
    });

    test('a spent account that alone sees a repo is asked whether pulls are back', async () => {
      await start({ logins, pulls: 3 }, { upstreamConfig });
      upstream.permittedUsers.set('me/secret', 'bob');
      for (let i = 0; i < 5; i++) upstream.addImage('me/secret', images[i]!, `t${i}`);
      const secret = (reference: string, method = 'GET'): Promise<Reply> =>
        mirror.get(`/v2/me/secret/manifests/${reference}`, { method });
      for (let i = 0; i < 3; i++) assert.equal((await secret(`t${i}`)).status, 200);
      assert.equal((await secret('t3')).status, 429);
      // A tag that has moved is the same to HEAD and GET.
      upstream.addManifest('me/secret', images[4]!.manifest, 't0');
      mirror.clock.advance(6 * minute);
      for (const method of ['HEAD', 'GET']) {
        const reply = await secret('t0', method);
        assert.equal(reply.headers['docker-content-digest'], images[0]!.manifest.digest);
      }
      upstream.spent.clear();
      mirror.clock.advance(minute);
      assert.equal((await secret(images[3]!.manifest.digest)).status, 200);
    });

    test('anonymous takes over only where it is listed', async () => {
      const wrong = { username: 'ann', password: 'wr0ng' };
      await start({ logins, anonymous: true }, { upstreamConfig: { accounts: [wrong] } });
      const reply = await get(0);
      assert.equal(reply.status, 503);
      assert.match(errorOf(reply).message, /account ann/);
      await mirror.close();
      mirror = await TestMirror.start({
        upstream: upstream.url,
        upstreamConfig: { accounts: [wrong, { anonymous: true }] },
      });
      assert.equal((await get(0)).status, 200);
    });

    test('who may see a private repo is remembered', async () => {
      await start({ logins, pulls: 100 }, { upstreamConfig });
      upstream.permittedUsers.set('me/secret', 'bob');
      for (let i = 0; i < 5; i++) upstream.addImage('me/secret', images[i]!, `t${i}`);
      for (let i = 0; i < 5; i++)
        assert.equal((await mirror.get(`/v2/me/secret/manifests/t${i}`)).status, 200);
      assert.equal(upstream.count('manifest', { status: 401 }), 1);
      assert.equal(upstream.spent.get('ann'), undefined);
      assert.equal(upstream.calls.filter(({ url }) => url.includes('account=ann')).length, 1);
      // Nobody sees it: one look by each, and then none for a while.
      upstream.permittedUsers.set('me/none', 'eve');
      upstream.forget();
      for (let i = 0; i < 5; i++) assert.equal((await mirror.get('/v2/me/none/manifests/1')).status, 404);
      assert.ok(upstream.calls.length <= 8, String(upstream.calls.length));
    });

    test('what came without a login is public, what came with one is not', async () => {
      await start(
        { logins, anonymous: true },
        { upstreamConfig: { accounts: [{ anonymous: true }, logins[1]] } },
      );
      upstream.permittedUsers.set('me/secret', 'bob');
      upstream.addImage('me/secret', images[20]!, '1');
      await get(0);
      await mirror.get('/v2/me/secret/manifests/1');
      const at = (image: Image) => mirror.get(`/v2/library/y/manifests/${image.manifest.digest}`);
      assert.equal((await at(images[0]!)).status, 200);
      assert.equal((await at(images[20]!)).status, 404);
    });
  });

  describe('credentials from elsewhere', () => {
    const login = { username: 'ann', password: 's3cr3t-ann' };
    let directory: string;
    let path: string;

    async function helper(name: string, script: string): Promise<void> {
      const file = join(directory, `docker-credential-${name}`);
      await writeFile(file, `#!/bin/sh\necho "$(cat) $1" >> ${join(directory, 'calls')}\n${script}\n`);
      await chmod(file, 0o755);
    }

    async function withHelpers(work: () => Promise<void>): Promise<void> {
      directory = await mkdtemp(join(tmpdir(), 'layercache-test-'));
      path = process.env['PATH'] ?? '';
      process.env['PATH'] = `${directory}${delimiter}${path}`;
      try {
        await work();
      } finally {
        process.env['PATH'] = path;
        await rm(directory, { recursive: true });
      }
    }

    const answer = (user: string, secret: string): string =>
      `echo '{"ServerURL":"x","Username":"${user}","Secret":"${secret}"}'`;

    test('a helper is asked once, and again when its answer is refused', () =>
      withHelpers(async () => {
        await helper('test', answer(login.username, login.password));
        await start(
          { logins: [login] },
          { upstreamConfig: { credentialHelper: 'test' }, config: { tags: { ttl: 0 } } },
        );
        for (let i = 0; i < 3; i++) assert.equal((await get(i)).status, 200);
        const calls = async (): Promise<string[]> => {
          const { readFile } = await import('node:fs/promises');
          return (await readFile(join(directory, 'calls'), 'utf8')).trim().split('\n');
        };
        assert.deepEqual(await calls(), ['https://index.docker.io/v1/ get']);
        // The password changes on both sides.
        (login as { password: string }).password = 's3cr3t-new';
        await helper('test', answer(login.username, 's3cr3t-new'));
        mirror.clock.advance(10 * minute);
        assert.equal((await get(4)).status, 200);
        assert.equal((await calls()).length, 2);
      }));

    test('a helper that fails sets its account aside, and says why', () =>
      withHelpers(async () => {
        await helper('test', 'echo s3cr3t-output; exit 3');
        await start({ logins: [login] }, { upstreamConfig: { credentialHelper: 'test' } });
        for (let i = 0; i < 5; i++) {
          const reply = await get(i);
          assert.equal(reply.status, 503);
          assert.match(errorOf(reply).message, /account test of docker\.io: credentials unavailable/);
        }
        assert.equal(upstream.count('token'), 0);
        await until(() => mirror.log.includes('docker-credential-test exited with 3'), 'the log tells why');
        assert.doesNotMatch(mirror.log, /s3cr3t-output/);
      }));

    test('a helper that hangs, and what it has started, is ended; the deadline holds, and others take over', () =>
      withHelpers(async () => {
        await helper('test', 'sleep 300');
        await start(
          { logins: [login], anonymous: true },
          { upstreamConfig: { credentialHelper: 'test' }, config: { fetch: { firstByteTimeout: '300ms' } } },
        );
        const started = performance.now();
        assert.equal((await get(0)).status, 504);
        assert.ok(performance.now() - started < 2000);
      }));

    test('the login that docker has left, an identity token among them', () =>
      withHelpers(async () => {
        const file = join(directory, 'config.json');
        const auth = Buffer.from(`${login.username}:${login.password}`).toString('base64');
        await writeFile(file, JSON.stringify({ auths: { 'https://index.docker.io/v1/': { auth } } }));
        await start({ logins: [login] }, { upstreamConfig: { dockerConfig: file } });
        assert.equal((await get(0)).status, 200);
        await writeFile(
          file,
          JSON.stringify({ auths: { 'docker.io': { identitytoken: 's3cr3t-identity' } } }),
        );
        const forms: string[] = [];
        upstream.script('token', (call, req, res, next) => {
          let form = '';
          req.on('data', (chunk: Buffer) => (form += chunk.toString()));
          req.on('end', () => {
            forms.push(form);
            if (call.method !== 'POST') next();
            else {
              upstream.tokens.add('Bearer s3cr3t-access library/x');
              res.end('{"access_token":"s3cr3t-access"}');
            }
          });
        });
        mirror.clock.advance(10 * minute);
        assert.equal((await get(1)).status, 200);
        assert.match(forms[0] ?? '', /grant_type=refresh_token&refresh_token=s3cr3t-identity/);
        assert.match(forms[0] ?? '', /scope=repository%3Alibrary%2Fx%3Apull/);
      }));
  });
});
