import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sameBytes } from '../support/http.ts';
import { imageOf, randomBlob, type Image } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Upstream } from '../support/upstream.ts';

describe('a registry that leads elsewhere gains nothing that is not its own', () => {
  let owner: Upstream;
  let other: Upstream;
  let mirror: TestMirror;
  let image: Image;

  beforeEach(async () => {
    [owner, other] = await Promise.all([Upstream.start(), Upstream.start()]);
    image = imageOf([randomBlob(5000)]);
    owner.addImage('acme/secret', image, '1');
    mirror = await TestMirror.start({
      upstream: other.url,
      upstreams: [{ registry: 'private.example', url: owner.url, private: true }],
      config: {
        clients: { groups: [{ name: 'all', from: ['127.0.0.0/8'], deny: ['private.example/**'] }] },
      },
    });
  });
  afterEach(async () => {
    await mirror.close();
    await Promise.all([owner.stop(), other.stop()]);
  });

  /** Whatever it is asked for, it sends to that base. */
  function leadTo(base: string): void {
    for (const kind of ['manifest', 'blob', 'tags'] as const) {
      other.script(kind, ({ url }, _req, res) => {
        res.writeHead(307, { location: base + url.replace('/v2/library/x', '/acme/secret') });
        res.end();
      });
    }
  }

  const paths = (): string[] => [
    'manifests/1',
    `manifests/${image.manifest.digest}`,
    `blobs/${image.layers[0]!.digest}`,
    'tags/list',
  ];

  test('to this mirror itself: it is told that this is a ring', async () => {
    leadTo(`${mirror.url}/v2/private.example`);
    for (const path of paths()) {
      const reply = await mirror.get(`/v2/library/x/${path}`);
      assert.equal(reply.status, 508, `${path}: ${reply.body.toString()}`);
    }
    assert.equal(owner.calls.length, 0);
  });

  test('to a private upstream: it is refused before anything is asked', async () => {
    leadTo(`${owner.url}/v2`);
    for (const path of paths()) {
      const { status, body } = await mirror.get(`/v2/library/x/${path}`);
      assert.equal(status, 502, `${path}: ${body.toString()}`);
    }
    assert.equal(owner.calls.length, 0);
  });

  test('what comes out of another mirror’s cache belongs to the repository that it was given for', async () => {
    other.addImage('team/a', image, '1');
    other.script('blob', ({ repo }, _req, res, next) => {
      res.setHeader('x-cache', 'hit');
      if (repo === 'team/a') next();
      else res.writeHead(404, { 'content-type': 'application/json' }).end('{"errors":[]}');
    });
    const { digest, bytes } = image.layers[0]!;
    sameBytes((await mirror.get(`/v2/team/a/blobs/${digest}`)).body, bytes);
    await until(
      async () => (await mirror.get(`/v2/team/a/blobs/${digest}`)).headers['x-cache'] === 'hit',
      'it is stored',
    );
    assert.equal((await mirror.get(`/v2/team/b/blobs/${digest}`)).status, 404);
  });
});
