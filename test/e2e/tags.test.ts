import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import type { Reply } from '../support/http.ts';
import { imageOf, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream, type UpstreamOptions } from '../support/upstream.ts';

const minute = 60_000;

describe('tags', () => {
  const old = imageOf([randomBlob(1000)]);
  const next = imageOf([]);
  let upstream: Upstream;
  let mirror: TestMirror;

  async function start(tags: object, options: UpstreamOptions = {}, config: object = {}): Promise<void> {
    upstream = await Upstream.start({ auth: 'bearer', ...options });
    upstream.addImage('library/x', old, '1');
    mirror = await TestMirror.start({ upstream: upstream.url, config: { tags, ...config } });
  }

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  const get = (tag = '1'): Promise<Reply> => mirror.get(`/v2/library/x/manifests/${tag}`);
  const digestOf = (reply: Reply): unknown => reply.headers['docker-content-digest'];

  test('asked about behind the answer: served at once, and the new one is there for who asks next', async () => {
    await start({ revalidate: 'behind' });
    await get();
    upstream.addManifest('library/x', next.manifest, '1');
    mirror.clock.advance(10 * minute);
    upstream.script(
      'manifest',
      (_call, _req, _res, answer) => void until(() => released, 'it is released').then(answer),
    );
    let released = false;
    for (let i = 0; i < 5; i++) {
      const reply = await get();
      assert.equal(digestOf(reply), old.manifest.digest);
      assert.equal(reply.headers['x-cache'], 'hit');
      assert.equal(reply.headers['x-cache-reason'], 'revalidated-behind');
      assert.equal(reply.headers.age, '600');
    }
    released = true;
    await until(() => upstream.count('manifest', { method: 'GET' }) === 2, 'the new one is fetched');
    await until(async () => digestOf(await get()) === next.manifest.digest, 'the new one is served');
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 2);
    assert.equal(upstream.count('manifest', { method: 'GET' }), 2);
  });

  test('behind the answer the reserve is not touched', async () => {
    await start({ revalidate: 'behind' }, { pulls: 10 }, { quota: { reserve: 9 } });
    await get();
    upstream.addManifest('library/x', next.manifest, '1');
    mirror.clock.advance(10 * minute);
    assert.equal(digestOf(await get()), old.manifest.digest);
    const kept = 'layercache_admissions_refused_total{registry="docker.io",reason="reserve"}';
    await until(async () => (await mirror.metric(kept)) === 1, 'it is kept back');
    assert.equal(upstream.count('manifest', { method: 'GET' }), 1);
    // The reserve is for clients: the next one gets it, also when the time to live is over again.
    mirror.clock.advance(10 * minute);
    assert.equal(digestOf(await get()), next.manifest.digest);
  });

  test('behind the answer an outage is not hidden: what can no longer be pulled is not served as if it were', async () => {
    await start({ revalidate: 'behind' });
    await get();
    await upstream.stop();
    mirror.clock.advance(10 * minute);
    assert.equal((await get()).headers['x-cache'], 'hit');
    await until(async () => (await get()).status === 503, 'the outage shows: its layers are not here');
    await upstream.resume();
    mirror.clock.advance(minute);
    assert.equal((await get()).headers['x-cache'], 'revalidated');
  });

  test('what has run out long ago is asked about first', async () => {
    await start({ revalidate: 'behind' });
    await get();
    upstream.addManifest('library/x', next.manifest, '1');
    mirror.clock.advance(25 * 60 * minute);
    assert.equal(digestOf(await get()), next.manifest.digest);
  });

  test('rules by pattern go before the general ttl, the first that matches', async () => {
    const rules = [
      { match: 'docker.io/library/*:*-20*', ttl: '1d' },
      { match: 'docker.io/library/x:edge', ttl: 0 },
      { match: 'docker.io/**:edge', ttl: '1d' },
    ];
    await start({ ttl: '5m', rules });
    for (const tag of ['b-20260101', 'edge']) upstream.addManifest('library/x', old.manifest, tag);
    for (const [tag, expected] of [
      ['b-20260101', 'hit'],
      ['edge', 'revalidated'],
      ['1', 'revalidated'],
    ] as const) {
      await get(tag);
      mirror.clock.advance(6 * minute);
      assert.equal((await get(tag)).headers['x-cache'], expected, tag);
    }
    assert.equal((await get('edge')).headers['x-cache'], 'revalidated');
    assert.equal((await get('1')).headers['x-cache'], 'hit');
  });

  test('a tag that the upstream has deleted is gone, or kept if the operator says so', async () => {
    for (const whenGone of ['404', 'keep']) {
      await start({ ttl: 0, whenGone });
      await get();
      for (const { digest } of [old.config, ...old.layers]) await mirror.get(`/v2/library/x/blobs/${digest}`);
      upstream.removeTag('library/x', '1');
      for (let i = 0; i < 3; i++) {
        const reply = await get();
        assert.equal(reply.status, whenGone === 'keep' ? 200 : 404);
        if (whenGone === 'keep') assert.equal(reply.headers['x-cache-reason'], 'tag-gone');
        mirror.clock.advance(40 * 24 * 60 * minute);
      }
      if (whenGone === '404') await Promise.all([mirror.close(), upstream.stop()]);
    }
  });

  test('fifty requests for what is missing: one look; a hundred for a cold tag: one of each', async () => {
    await start({});
    const all = (count: number, tag: string): Promise<Reply[]> =>
      Promise.all(Array.from({ length: count }, () => get(tag)));
    for (const reply of await all(50, 'none')) assert.equal(reply.status, 404);
    assert.equal(upstream.count('manifest'), 1);
    upstream.forget();
    for (const reply of await all(100, '1')) assert.equal(reply.status, 200);
    assert.equal(upstream.count('manifest', { method: 'HEAD' }), 1);
    assert.equal(upstream.count('manifest', { method: 'GET' }), 1);
    assert.ok(upstream.count('token') <= 1);
  });
});
