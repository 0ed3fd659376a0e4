import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { errorOf, type Reply } from '../support/http.ts';
import { imageOf, randomBlob, type Image } from '../support/images.ts';
import { TestMirror } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

describe('which upstream a request means', () => {
  let hub: Upstream;
  let ghcr: Upstream;
  let mirror: TestMirror;
  const hubImage = imageOf([randomBlob(100_000)]);
  const ghcrImage = imageOf([randomBlob(100_000)]);

  before(async () => {
    [hub, ghcr] = await Promise.all([Upstream.start(), Upstream.start({ auth: 'bearer' })]);
    hub.addImage('org/app', hubImage, '1');
    hub.addImage('library/app', hubImage, '1');
    hub.addImage('cat/app', hubImage, '1');
    ghcr.addImage('org/app', ghcrImage, '1');
    ghcr.addImage('cat/app', ghcrImage, '1');
    mirror = await TestMirror.start({
      upstream: hub.url,
      upstreamConfig: { hosts: ['hub.mirror.example'] },
      upstreams: [
        {
          registry: 'ghcr.io',
          url: ghcr.url,
          aliases: ['cat'],
          hosts: ['ghcr.mirror.example:8443', 'g.example'],
        },
        { registry: '*.azurecr.example.org' },
      ],
    });
  });

  beforeEach(() => {
    hub.forget();
    ghcr.forget();
  });

  after(async () => {
    await mirror.close();
    await Promise.all([hub.stop(), ghcr.stop()]);
  });

  function assertIs(reply: Reply, image: Image, how: string): void {
    assert.equal(reply.status, 200, how);
    assert.equal(reply.headers['docker-content-digest'], image.manifest.digest, how);
    assert.ok(reply.body.equals(image.manifest.bytes), how);
  }

  const ways: [path: string, host: string, expected: 'hub' | 'ghcr'][] = [
    ['/v2/org/app/manifests/1', 'localhost', 'hub'],
    ['/v2/org/app/manifests/1?ns=docker.io', 'localhost', 'hub'],
    ['/v2/org/app/manifests/1?ns=index.docker.io', 'localhost', 'hub'],
    ['/v2/org/app/manifests/1?ns=registry-1.docker.io', 'localhost', 'hub'],
    ['/v2/app/manifests/1', 'localhost', 'hub'],
    ['/v2/docker.io/app/manifests/1', 'localhost', 'hub'],
    ['/v2/docker.io/library/app/manifests/1', 'localhost', 'hub'],
    ['/docker.io/v2/app/manifests/1', 'localhost', 'hub'],
    ['/v2/org/app/manifests/1', 'hub.mirror.example', 'hub'],
    ['/v2/org/app/manifests/1', 'registry-1.docker.io', 'hub'],
    ['/v2/org/app/manifests/1', 'evil.example', 'hub'],
    ['/v2/org/app/manifests/1?ns=ghcr.io', 'localhost', 'ghcr'],
    ['/v2/org/app/manifests/1?ns=cat', 'localhost', 'ghcr'],
    ['/v2/ghcr.io/org/app/manifests/1', 'localhost', 'ghcr'],
    ['/v2/cat/org/app/manifests/1', 'localhost', 'ghcr'],
    ['/ghcr.io/v2/org/app/manifests/1', 'localhost', 'ghcr'],
    ['/cat/v2/org/app/manifests/1', 'localhost', 'ghcr'],
    ['/v2/org/app/manifests/1', 'ghcr.mirror.example:8443', 'ghcr'],
    ['/v2/org/app/manifests/1', 'G.example:5000', 'ghcr'],
    ['/v2/org/app/manifests/1', 'ghcr.io', 'ghcr'],
    // Who says it twice, as BuildKit does.
    ['/v2/ghcr.io/org/app/manifests/1?ns=ghcr.io', 'localhost', 'ghcr'],
    // An alias may be a namespace too: with ns it is one.
    ['/v2/cat/app/manifests/1?ns=ghcr.io', 'localhost', 'ghcr'],
    // Who says two things: ns, then what stands before, then the first component, then the host.
    ['/v2/cat/app/manifests/1?ns=docker.io', 'g.example', 'hub'],
    ['/docker.io/v2/cat/app/manifests/1', 'g.example', 'hub'],
    ['/ghcr.io/v2/org/app/manifests/1?ns=docker.io', 'g.example', 'hub'],
    ['/v2/ghcr.io/org/app/manifests/1', 'hub.mirror.example', 'ghcr'],
  ];

  test('by ns, before and after /v2/, alias, host, and none of them', async () => {
    for (const round of ['cold', 'warm'])
      for (const [path, host, expected] of ways) {
        const reply = await mirror.get(path, { headers: { host } });
        assertIs(reply, expected === 'hub' ? hubImage : ghcrImage, `${round} ${host} ${path}`);
        assert.equal(reply.headers['oci-namespace'], /ns=(.+)/.exec(path)?.[1], path);
      }
  });

  test('a repo has one place in the cache, however it is called', async () => {
    for (const [path, host] of ways) await mirror.get(path, { headers: { host } });
    hub.forget();
    ghcr.forget();
    for (const [path, host] of ways) {
      const { headers } = await mirror.get(path, { headers: { host } });
      assert.equal(headers['x-cache'], 'hit', path);
    }
    assert.equal(hub.calls.length + ghcr.calls.length, 0);
    const text = await mirror.metrics();
    assert.match(text, /layercache_requests_total\{registry="ghcr\.io",kind="manifest",result="hit"\}/);
    assert.doesNotMatch(text, /registry="cat"/);
  });

  test('unknown, forged and malformed names are 4xx, and nobody is asked', async () => {
    for (const ns of [
      'evil.example',
      '127.0.0.1',
      'localhost:22',
      'docker.io@evil.example',
      'docker.io/',
      '',
      'docker.io%0d%0aX-Evil:%201',
      '%00',
      'a.b.azurecr.example.org',
      '.azurecr.example.org',
      'evil.org/x.azurecr.example.org',
      '-.azurecr.example.org',
      'xn--.azurecr.example.org',
      `${'a'.repeat(70)}.azurecr.example.org`,
    ]) {
      for (const path of [`/v2/org/app/manifests/1?ns=${ns}`, `/v2/?ns=${ns}`]) {
        const reply = await mirror.get(path);
        assert.equal(reply.status, 404, path);
        assert.equal(errorOf(reply).code, 'NAME_UNKNOWN');
        assert.equal(reply.headers['x-evil'], undefined);
      }
    }
    assert.equal((await mirror.get('/v2/org/app/manifests/1?ns=docker.io&ns=ghcr.io')).status, 400);
    for (const query of ['', '?ns=docker.io'])
      for (const prefix of ['evil.example', 'x%0d%0aSet-Cookie:a', 'x%3E;rel=%22up%22,%3Cfoo'])
        assert.equal((await mirror.get(`/${prefix}/v2/org/app/tags/list${query}`)).status, 404);
    assert.equal(hub.calls.length + ghcr.calls.length, 0);
  });

  test('a pattern stands for each registry that it covers, by its own name', async () => {
    const reply = await mirror.get('/v2/app/manifests/1?ns=acme.azurecr.example.org');
    // There is none such: it was looked for, and by that name.
    assert.equal(reply.status, 503);
    assert.match(errorOf(reply).message, /acme\.azurecr\.example\.org/);
    assert.match(
      await mirror.metrics(),
      /layercache_upstream_requests_total\{registry="\*\.azurecr\.example\.org",kind="ping",status="error"\} 1/,
    );
    assert.doesNotMatch(await mirror.metrics(), /acme/);
    const bare = await mirror.get('/v2/other.azurecr.example.org/app/manifests/1');
    assert.match(errorOf(bare).message, /other\.azurecr\.example\.org \/v2\//);
    assert.equal(hub.calls.length, 0);
  });

  test('a ping is answered by every way that leads to an upstream', async () => {
    for (const path of ['/v2', '/v2/', '/ghcr.io/v2/', '/cat/v2', '/v2/?ns=docker.io']) {
      const reply = await mirror.get(path);
      assert.equal(reply.status, 200, path);
      assert.equal(reply.body.toString(), '{}');
    }
    assert.equal((await mirror.get('/nothing/v2/')).status, 404);
  });
});

test('a registry below a path, such as another mirror, is asked below it', async (t) => {
  const image = imageOf([randomBlob(100_000)]);
  const upstream = await Upstream.start({ auth: 'bearer' });
  upstream.addImage('org/app', image, '1');
  const first = await TestMirror.start({
    upstream: 'http://127.0.0.1:1',
    upstreams: [{ registry: 'ghcr.io', url: upstream.url }],
  });
  const second = await TestMirror.start({
    upstream: 'http://127.0.0.1:1',
    upstreams: [{ registry: 'ghcr.io', url: `${first.url}/ghcr.io` }],
  });
  t.after(() => Promise.all([first.close(), second.close(), upstream.stop()]));
  for (const path of ['manifests/1', `blobs/${image.layers[0]!.digest}`, 'tags/list']) {
    const reply = await second.get(`/v2/ghcr.io/org/app/${path}`);
    assert.equal(reply.status, 200, path);
    assert.equal(reply.headers['x-cache'], 'miss', path);
  }
});
