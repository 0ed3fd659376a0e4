import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { errorOf, type Reply } from '../support/http.ts';
import { imageOf, manifestOf, ociIndex, ociManifest, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

const tagsOf = (reply: Reply) => (JSON.parse(reply.body.toString()) as { tags: string[] | null }).tags;
const nextOf = (reply: Reply) => /^<([^>]+)>; rel="next"$/.exec(String(reply.headers['link'] ?? ''))?.[1];

describe('lists', () => {
  let hub: Upstream;
  let ghcr: Upstream;
  let mirror: TestMirror;
  const image = imageOf([randomBlob(100_000)]);
  const tags = Array.from({ length: 250 }, (_, i) => `t${String(i).padStart(3, '0')}`);

  beforeEach(async () => {
    [hub, ghcr] = await Promise.all([Upstream.start(), Upstream.start({ auth: 'bearer', referrers: true })]);
    ghcr.addImage('org/app', image);
    for (const tag of tags) ghcr.addManifest('org/app', image.manifest, tag);
    hub.addImage('library/app', image, 'hub');
    mirror = await TestMirror.start({
      upstream: hub.url,
      upstreams: [{ registry: 'ghcr.io', url: ghcr.url, hosts: ['g.example'] }],
    });
  });

  afterEach(async () => {
    await mirror.close();
    await Promise.all([hub.stop(), ghcr.stop()]);
  });

  /** All pages, as a client follows them. */
  async function pages(path: string, headers: Record<string, string> = {}): Promise<Reply[]> {
    const replies: Reply[] = [];
    for (let next: string | undefined = path; next !== undefined; next = nextOf(replies.at(-1)!)) {
      assert.ok(replies.length < 10, next);
      replies.push(await mirror.get(next, { headers }));
      assert.equal(replies.at(-1)?.status, 200, next);
    }
    return replies;
  }

  test('250 tags over pages, each link in the form that was used', async () => {
    for (const [path, prefix, host] of [
      ['/v2/ghcr.io/org/app/tags/list?n=100', '/v2/ghcr.io/org/app/tags/list?', 'x'],
      ['/ghcr.io/v2/org/app/tags/list?n=100', '/ghcr.io/v2/org/app/tags/list?', 'x'],
      ['/v2/org/app/tags/list?n=100&ns=ghcr.io', '/v2/org/app/tags/list?', 'x'],
      ['/v2/org/app/tags/list?n=100', '/v2/org/app/tags/list?', 'g.example'],
    ] as const) {
      const replies = await pages(path, { host });
      assert.equal(replies.length, 3, path);
      assert.deepEqual(replies.flatMap(tagsOf), tags);
      for (const reply of replies.slice(0, -1)) {
        assert.ok(nextOf(reply)?.startsWith(prefix), prefix);
        assert.equal(/ns=ghcr\.io/.test(nextOf(reply) ?? ''), path.includes('ns='));
      }
      assert.equal(replies[0]!.headers['content-type'], 'application/json');
      assert.equal(replies[0]!.headers['docker-content-digest'], undefined);
    }
    // The same three pages, whichever way they were asked for.
    assert.equal(ghcr.count('tags', { status: 200 }), 3);
  });

  test('n and last are passed on, and n that is none refused', async () => {
    const list = (query: string) => mirror.get(`/v2/ghcr.io/org/app/tags/list?${query}`);
    assert.deepEqual(tagsOf(await list('n=2&last=t001')), ['t002', 't003']);
    assert.deepEqual(tagsOf(await list('last=t247')), ['t248', 't249']);
    assert.equal(tagsOf(await list('n=99999999999'))?.length, 250);
    const none = await list('n=0');
    assert.deepEqual(tagsOf(none), []);
    assert.equal(none.headers['link'], undefined);
    ghcr.forget();
    for (const query of ['n=abc', 'n=-1', 'n=1&n=2', 'n=']) {
      const reply = await list(query);
      assert.equal(reply.status, 400, query);
      assert.equal(errorOf(reply).code, 'PAGINATION_NUMBER_INVALID');
    }
    assert.equal(ghcr.calls.length, 0);
  });

  test('is asked for once in its TTL however many want it, and confirmed after it', async () => {
    const path = '/v2/ghcr.io/org/app/tags/list';
    const replies = await Promise.all(Array.from({ length: 20 }, () => mirror.get(path)));
    assert.deepEqual(new Set(replies.map(({ status }) => status)), new Set([200]));
    assert.equal(ghcr.count('tags', { status: 200 }), 1);
    mirror.clock.advance(60_000);
    const hit = await mirror.get(path);
    assert.equal(hit.headers['x-cache'], 'hit');
    assert.equal(hit.headers.age, '60');
    const { headers } = await mirror.get(path, { headers: { 'if-none-match': hit.headers.etag ?? '' } });
    assert.equal(headers['x-cache'], 'hit');
    assert.equal((await mirror.head(path)).headers['content-length'], String(hit.body.length));
    mirror.clock.advance(5 * 60_000);
    ghcr.addManifest('org/app', image.manifest, 'u');
    const again = await mirror.get(path);
    assert.equal(again.headers['x-cache'], 'revalidated');
    assert.equal(tagsOf(again)?.length, 251);
    assert.equal(
      await mirror.metric('layercache_requests_total{registry="ghcr.io",kind="tags",result="revalidated"}'),
      1,
    );
  });

  test('with the upstream down or ill: stale, also after a restart, or an error, never empty', async () => {
    const path = '/v2/ghcr.io/org/app/tags/list?n=100';
    const before = await mirror.get(path);
    mirror.clock.advance(6 * 60_000);
    for (const answer of [
      (status: number) => ({ status, body: 'no' }),
      () => ({ status: 200, body: '<html>portal</html>' }),
      () => ({ status: 200, body: '{}' }),
      () => ({ status: 200, body: '' }),
    ]) {
      const { status, body } = answer(500);
      ghcr.script('tags', (_call, _req, res) => {
        res.writeHead(status, { 'content-type': 'application/json' });
        res.end(body);
      });
      const stale = await mirror.get(path);
      assert.equal(stale.headers['x-cache'], 'stale', body);
      assert.match(String(stale.headers.warning), /^299 - "/);
      assert.ok(stale.body.equals(before.body));
      assert.equal(nextOf(stale), nextOf(before));
      const unknown = await mirror.get('/v2/ghcr.io/org/app/tags/list?n=7');
      assert.ok(unknown.status >= 500, `${unknown.status}`);
      ghcr.behave();
      mirror.clock.advance(10_000);
    }
    await ghcr.stop();
    await mirror.restart();
    assert.equal((await mirror.get(path)).headers['x-cache'], 'stale');
    assert.equal((await mirror.get('/v2/ghcr.io/org/other/tags/list')).status, 503);
  });

  test('clients that leave while the upstream is asked take no memory with them', async () => {
    const path = '/v2/ghcr.io/org/app/tags/list';
    const { promise: go, resolve: open } = Promise.withResolvers<undefined>();
    const large = JSON.stringify({
      name: 'org/app',
      tags: Array.from({ length: 500_000 }, (_, i) => `t${i}`),
    });
    ghcr.script('tags', async (_call, _req, res) => {
      await go;
      res.writeHead(200, { 'content-type': 'application/json' }).end(large);
    });
    const sockets = Array.from({ length: 20 }, () => {
      const socket = connect(mirror.service.address.port, '127.0.0.1');
      socket.on('error', () => undefined);
      socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\n\r\n`);
      return socket;
    });
    await until(() => ghcr.count('tags') === 1, 'the upstream is asked');
    for (const socket of sockets) socket.destroy();
    open(undefined);
    await until(() => mirror.log.split('"kind":"tags"').length > 20, 'all have ended');
    assert.equal((await mirror.get(path)).body.length, large.length);
  });

  test('one refusal of a list that is held is no bad question of the client', async () => {
    const path = '/v2/ghcr.io/org/app/tags/list';
    await mirror.get(path);
    mirror.clock.advance(10 * 60_000);
    ghcr.script('tags', (_call, _req, res) => void res.writeHead(400).end());
    assert.equal((await mirror.get(path)).headers['x-cache'], 'stale');
    assert.equal((await mirror.get(`${path}?last=x`)).status, 400);
  });

  test('a repo that is not there is 404, also when it was', async () => {
    const unknown = await mirror.get('/v2/ghcr.io/org/none/tags/list?n=0');
    assert.equal(unknown.status, 404);
    assert.equal(errorOf(unknown).code, 'NAME_UNKNOWN');
    const path = '/v2/ghcr.io/org/app/tags/list';
    assert.equal((await mirror.get(path)).status, 200);
    mirror.clock.advance(6 * 60_000);
    ghcr.script('tags', (_call, _req, res) => void res.writeHead(404).end());
    assert.equal((await mirror.get(path)).status, 404);
    await ghcr.stop();
    mirror.clock.advance(60_000);
    assert.equal((await mirror.get(path)).status, 503);
  });

  test('links: absolute ones are made ours, others are dropped; tags may be null', async () => {
    const answers: [link: string, expected: string | undefined][] = [
      [`<${ghcr.url}/v2/org/app/tags/list?next_page=a%2Bb&n=1>; rel="next"`, 'next_page=a%2Bb&n=1'],
      ['<https://evil.example/v2/org/app/tags/list?n=1>; rel="next"', undefined],
      // A proxy in front has made another path of it; what is listed is the same.
      [`<${ghcr.url}/repository/proxy/v2/org/app/tags/list?last=b&n=1>; rel='next'`, 'last=b&n=1'],
      ['</v2/org/app/tags/list?last=b&n=0>; title="<x>"; rel=next', 'last=b'],
      ['</v2/org/app/referrers/list?n=1>; rel="next"', undefined],
      ['</v2/org/app/tags/list?n=1>; rel="prev"', undefined],
      ['</v2/org/app/tags/list?n=1>; rel="prev", <?n=2>; rel=next', 'n=2'],
      ['nonsense', undefined],
    ];
    for (const [i, [link, expected]] of answers.entries()) {
      ghcr.script('tags', (_call, _req, res) => {
        res.writeHead(200, { 'content-type': 'application/json', link, 'set-cookie': 'a=b' });
        res.end('{"name":"org/app","tags":null}');
      });
      const reply = await mirror.get(`/v2/ghcr.io/org/app/tags/list?last=${i}`);
      assert.equal(reply.status, 200);
      assert.equal(tagsOf(reply), null);
      assert.equal(nextOf(reply), expected && `/v2/ghcr.io/org/app/tags/list?${expected}`, link);
      assert.equal(reply.headers['set-cookie'], undefined);
      ghcr.behave();
    }
  });

  describe('of referrers', () => {
    const subject = {
      mediaType: ociManifest,
      digest: image.manifest.digest,
      size: image.manifest.bytes.length,
    };
    const referrer = (artifactType: string) =>
      manifestOf(
        {
          schemaVersion: 2,
          mediaType: ociManifest,
          artifactType,
          config: { mediaType: 'application/vnd.oci.empty.v1+json', digest: image.config.digest, size: 500 },
          layers: [],
          subject,
        },
        ociManifest,
      );
    const path = `/v2/ghcr.io/org/app/referrers/${image.manifest.digest}`;
    const listed = (reply: Reply) =>
      (JSON.parse(reply.body.toString()) as { manifests: { artifactType: string }[] }).manifests.map(
        ({ artifactType }) => artifactType,
      );

    test('filtered and not, never mixed, with what the upstream says of its filter', async () => {
      ghcr.addManifest('org/app', referrer('sbom'));
      ghcr.addManifest('org/app', referrer('signature'));
      const all = await mirror.get(path);
      assert.equal(all.headers['content-type'], ociIndex);
      assert.equal(all.headers['content-length'], String(all.body.length));
      assert.equal(all.headers['oci-filters-applied'], undefined);
      assert.deepEqual(listed(all), ['sbom', 'signature']);
      const some = await mirror.get(`${path}?artifactType=sbom`);
      assert.deepEqual(listed(some), ['sbom']);
      assert.equal(some.headers['oci-filters-applied'], 'artifactType');
      assert.deepEqual(listed(await mirror.get(path)), ['sbom', 'signature']);
    });

    test('a new one is seen soon; with the upstream down they are as they were', async () => {
      await mirror.get(`/v2/ghcr.io/org/app/manifests/${image.manifest.digest}`);
      assert.deepEqual(listed(await mirror.get(path)), []);
      ghcr.addManifest('org/app', referrer('sbom'));
      mirror.clock.advance(60_001);
      assert.deepEqual(listed(await mirror.get(path)), ['sbom']);
      await mirror.get(`/v2/ghcr.io/org/app/manifests/${referrer('sbom').digest}`);
      await ghcr.stop();
      mirror.clock.advance(60_001);
      await mirror.restart();
      const stale = await mirror.get(path);
      assert.equal(stale.headers['x-cache'], 'stale');
      assert.deepEqual(listed(stale), ['sbom']);
      const held = await mirror.get(`/v2/ghcr.io/org/app/manifests/${referrer('sbom').digest}`);
      assert.equal(held.headers['x-cache'], 'hit');
      const unknown = await mirror.get(`${path}?artifactType=unheard`);
      assert.equal(unknown.status, 503);
    });

    test('a registry that keeps none: 404, not of the name, also while it is down; the tag instead works', async () => {
      const hubPath = `/v2/app/referrers/${image.manifest.digest}`;
      const fallback = `/v2/app/manifests/${image.manifest.digest.replace(':', '-')}`;
      const signature = `${fallback}.sig`;
      await mirror.get('/v2/app/manifests/hub');
      const none = await mirror.get(hubPath);
      assert.equal(none.status, 404);
      assert.equal(errorOf(none).code, 'MANIFEST_UNKNOWN');
      assert.equal((await mirror.get(fallback)).status, 404);
      const index = manifestOf({ schemaVersion: 2, mediaType: ociIndex, manifests: [] }, ociIndex);
      const tag = fallback.split('/').at(-1)!;
      hub.addManifest('library/app', index, tag);
      hub.addImage('library/app', imageOf([randomBlob(100)]), `${tag}.sig`);
      mirror.clock.advance(10_001);
      assert.ok((await mirror.get(fallback)).body.equals(index.bytes));
      assert.equal((await mirror.get(signature)).status, 200);
      await hub.stop();
      mirror.clock.advance(6 * 60_000);
      assert.equal((await mirror.get(hubPath)).status, 404);
      assert.equal((await mirror.get(fallback)).headers['x-cache'], 'stale');
    });

    test('that there was no such tag is an answer too while the upstream is down, of an image that is held', async () => {
      const tag = image.manifest.digest.replace(':', '-');
      const path = `/v2/app/manifests/${tag}`;
      const other = `/v2/app/manifests/sha256-${'0'.repeat(64)}`;
      assert.equal((await mirror.get('/v2/app/manifests/hub')).status, 200);
      for (const each of [path, `${path}.sig`, other]) assert.equal((await mirror.get(each)).status, 404);
      await hub.stop();
      mirror.clock.advance(60_000);
      await mirror.restart();
      for (const each of [path, `${path}.sig`]) assert.equal((await mirror.get(each)).status, 404);
      for (const each of [other, `${path}.att`, '/v2/app/manifests/none'])
        assert.equal((await mirror.get(each)).status, 503);
      await hub.resume();
      mirror.clock.advance(60_000);
      hub.addManifest('library/app', image.manifest, tag);
      assert.equal((await mirror.get(path)).status, 200);
      await hub.stop();
      mirror.clock.advance(10 * 60_000);
      // The image itself is not whole: its layer was never pulled.
      assert.equal((await mirror.get(path)).status, 503);
    });

    test('one refusal takes nothing away; n is passed on; junk is nobody’s row', async () => {
      await mirror.get(`/v2/ghcr.io/org/app/manifests/${image.manifest.digest}`);
      ghcr.addManifest('org/app', referrer('sbom'));
      assert.deepEqual(listed(await mirror.get(path)), ['sbom']);
      mirror.clock.advance(60_001);
      ghcr.script('referrers', (_call, _req, res) => void res.writeHead(400).end());
      assert.equal((await mirror.get(path)).status, 404);
      ghcr.behave();
      assert.deepEqual(listed(await mirror.get(`${path}?n=0`)), ['sbom']);
      await ghcr.stop();
      mirror.clock.advance(60_001);
      assert.deepEqual(listed(await mirror.get(path)), ['sbom']);
    });

    test('an upstream that is ill is 5xx, never an empty list and never 404', async () => {
      for (const status of [429, 500, 503]) {
        ghcr.script('referrers', (_call, _req, res) => void res.writeHead(status).end());
        assert.ok([429, 503].includes((await mirror.get(`${path}?artifactType=a${status}`)).status));
        ghcr.behave();
        mirror.clock.advance(60_000);
      }
      for (const body of ['<html></html>', '{}', '{"manifests":{}}']) {
        ghcr.script('referrers', (_call, _req, res) => void res.writeHead(200).end(body));
        assert.equal((await mirror.get(`${path}?artifactType=${encodeURIComponent(body)}`)).status, 502);
        ghcr.behave();
      }
      for (const status of [400, 401, 403, 405, 406, 501]) {
        ghcr.script('referrers', (_call, _req, res) => void res.writeHead(status).end());
        const reply = await mirror.get(`${path}?artifactType=b${status}`);
        assert.equal(reply.status, 404, `${status}`);
        assert.equal(errorOf(reply).code, 'MANIFEST_UNKNOWN');
        ghcr.behave();
      }
    });
  });

  test('there is no catalog: names are nobody’s business', async () => {
    for (const path of ['/v2/_catalog', '/v2/_catalog?n=2147483647', '/v2/_oci/ext/discover'])
      assert.equal((await mirror.get(path)).status, 404);
    assert.equal(hub.calls.length + ghcr.calls.length, 0);
  });
});
