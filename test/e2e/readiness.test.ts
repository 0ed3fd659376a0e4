import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { afterEach, describe, test } from 'node:test';
import { ask } from '../support/http.ts';
import { imageOf, randomBlob } from '../support/images.ts';
import { TestMirror, until, type MirrorOptions } from '../support/mirror.ts';
import { Upstream, type UpstreamOptions } from '../support/upstream.ts';

describe('/readyz says what does not work', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const image = imageOf([randomBlob(1000)]);

  async function start(options: UpstreamOptions = {}, rest: Partial<MirrorOptions> = {}): Promise<void> {
    upstream = await Upstream.start(options);
    upstream.addImage('library/x', image, '1');
    mirror = await TestMirror.start({ upstream: upstream.url, ...rest });
  }
  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  async function readyz(): Promise<{ status: number; text: string }> {
    const { status, body } = await ask(`${mirror.adminUrl}/readyz`);
    return { status, text: body.toString().trim() };
  }
  const lines = async (text: string): Promise<number> => {
    await until(() => mirror.log.includes(text), `the log has ${text}`);
    return mirror.log.split(text).length - 1;
  };

  test('an upstream that is down, and that it is back, though nobody pulls', async () => {
    await start();
    assert.deepEqual(await readyz(), { status: 200, text: 'ok' });
    await upstream.stop();
    assert.equal((await mirror.get('/v2/x/manifests/1')).status, 503);
    assert.deepEqual(await readyz(), {
      status: 200,
      text: 'degraded: docker.io is unreachable or failing',
    });
    await upstream.resume();
    mirror.clock.advance(10_000);
    await until(async () => (await readyz()).text === 'ok', 'it is asked whether it is back');
    upstream.script('manifest', (_call, _req, res) => void res.writeHead(503).end());
    assert.equal((await mirror.get('/v2/x/manifests/1')).status, 503);
    assert.match((await readyz()).text, /^degraded: docker\.io is unreachable or failing$/);
  });

  test('a refused account, without its name', async () => {
    const login = { username: 'somebody', password: 'right' };
    await start(
      { auth: 'bearer', login },
      { upstreamConfig: { accounts: [{ ...login, password: 'wrong' }] } },
    );
    assert.equal((await mirror.get('/v2/x/manifests/1')).status, 503);
    const { status, text } = await readyz();
    assert.equal(status, 200);
    assert.equal(text, 'degraded: docker.io: configured credentials rejected or unavailable');
    for (let i = 0; i < 3; i++) await mirror.get(`/v2/x/manifests/${i}`);
    assert.equal(await lines('account disabled'), 1);
  });

  test('spent pulls, with the time at which they may be back: one line then, and one when they are', async () => {
    await start({ auth: 'bearer', pulls: 1 });
    assert.equal((await mirror.get('/v2/x/manifests/1')).status, 200);
    upstream.addImage('library/x', imageOf([randomBlob(10)]), '2');
    for (let i = 0; i < 3; i++) assert.equal((await mirror.get('/v2/x/manifests/2')).status, 429);
    const { status, text } = await readyz();
    assert.equal(status, 200);
    const [, at] =
      /^degraded: docker\.io: all pulls are spent; more may be available at (\S+Z)$/.exec(text) ?? [];
    assert.ok(Date.parse(at ?? '') > mirror.clock.now(), text);
    assert.equal(await lines('"msg":"pulls spent'), 1);
    assert.match(mirror.log, /"level":40[^\n]+"backAt":"2026-\S+?Z"/);
    upstream.spent.clear();
    mirror.clock.advance(6 * 60 * 60_000 + 1000);
    assert.equal((await mirror.get('/v2/x/manifests/2')).status, 200);
    upstream.spent.clear();
    assert.equal(await lines('"msg":"pulls available again"'), 1);
  });

  test('503 when the store is gone and the upstream too', async () => {
    await start();
    assert.equal((await mirror.get('/v2/x/manifests/1')).status, 200);
    await rm(mirror.dataDirectory, { recursive: true, maxRetries: 5 });
    await until(async () => (await readyz()).text.includes('removed or replaced'), 'it is noticed');
    assert.equal((await readyz()).status, 200, 'what is asked for is passed on');
    await upstream.stop();
    await mirror.get('/v2/x/manifests/2');
    assert.equal((await readyz()).status, 503);
  });
});
