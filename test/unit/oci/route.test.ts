import fc from 'fast-check';
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseRoute } from '../../../src/oci/route.ts';
import { MirrorError, type Fault } from '../../../src/util/errors.ts';

const digest = `sha256:${'a'.repeat(64)}`;

/** What it is, without how it was put. */
function parse(target: string) {
  const { path, query, prefix, ns, ...route } = parseRoute('GET', target);
  assert.equal(path, decodeURIComponent(target.split('?')[0]!));
  return {
    ...route,
    ...(prefix !== undefined && { prefix }),
    ...(ns !== undefined && { ns }),
    query: query.toString(),
  };
}

function faultOf(method: string, target: string): Fault | 'none' {
  try {
    parseRoute(method, target);
    return 'none';
  } catch (error) {
    assert.ok(error instanceof MirrorError, String(error));
    return error.fault;
  }
}

describe('route', () => {
  test('names are read from the right', () => {
    const names = [
      'alpine',
      'a/b/c',
      'foo/manifests/bar',
      'blobs/blobs',
      'a/tags/list',
      'x/referrers/y',
      'manifests',
    ];
    for (const name of names) {
      const expected = { kind: 'manifest', name, reference: { tag: 'latest' }, query: '' };
      assert.deepEqual(parse(`/v2/${name}/manifests/latest`), expected);
      assert.deepEqual(parse(`/v2/${name}/blobs/${digest}`), { kind: 'blob', name, digest, query: '' });
      assert.deepEqual(parse(`/v2/${name}/referrers/${digest}`), {
        kind: 'referrers',
        name,
        digest,
        query: '',
      });
      assert.deepEqual(parse(`/v2/${name}/tags/list?n=5&ns=x.io&last=a`), {
        kind: 'tags',
        name,
        ns: 'x.io',
        query: 'n=5&last=a',
      });
      assert.deepEqual(parse(`/ghcr.io/v2/${name}/manifests/latest`), { ...expected, prefix: 'ghcr.io' });
    }
  });

  test('the base, with and without its slash', () => {
    for (const target of ['/v2', '/v2/', '/v2/?ns=docker.io', '/hub/v2', '/reg.example:5000/v2/'])
      assert.equal(parseRoute('GET', target).kind, 'ping');
  });

  test('a digest, plain and with its colon encoded; a namespace', () => {
    const expected = { kind: 'manifest', name: 'x', reference: { digest }, ns: 'ghcr.io', query: '' };
    assert.deepEqual(parse(`/v2/x/manifests/${digest}?ns=ghcr.io`), expected);
    assert.deepEqual(parse(`/v2/x/manifests/${digest.replace(':', '%3a')}?ns=ghcr.io`), expected);
  });

  const refused: [method: string, target: string, fault: Fault][] = [
    ['GET', '/', 'route-unknown'],
    ['GET', '/v1/_ping', 'route-unknown'],
    ['GET', '/v2/x', 'route-unknown'],
    ['GET', '/v2/lib/x/foo', 'route-unknown'],
    ['GET', '/v2/_catalog', 'route-unknown'],
    ['GET', '/v2x/', 'route-unknown'],
    ['GET', '/a/b/v2/', 'route-unknown'],
    ['GET', '/v2/x/tags/all', 'route-unknown'],
    ['GET', '/v2/_oci/ext/discover', 'route-unknown'],
    ['GET', '/v2/x/referrers/sha256:xyz', 'digest-invalid'],
    ['GET', 'http://evil.example/v2', 'route-unknown'],
    ['GET', 'http://evil.example/v2/x/manifests/latest', 'route-unknown'],
    ['GET', '/v2/a%2fb/manifests/latest', 'route-unknown'],
    ['GET', '/v2/a%252fb/manifests/latest', 'route-unknown'],
    ['GET', '/v2/a%5cb/manifests/latest', 'route-unknown'],
    ['GET', '/v2/a%00/manifests/latest', 'route-unknown'],
    ['GET', '/v2/a%ff/manifests/latest', 'route-unknown'],
    ['GET', `/v2/${'a'.repeat(5000)}/manifests/latest`, 'request-invalid'],
    ['GET', '/v2/x/manifests/latest?ns=a&ns=b', 'request-invalid'],
    ['GET', '/v2/x/manifests/.INVALID_MANIFEST_NAME', 'manifest-unknown'],
    ['GET', `/v2/x/manifests/${'t'.repeat(129)}`, 'manifest-unknown'],
    ['GET', '/v2/x/manifests/a+b', 'manifest-unknown'],
    ['GET', '/v2/x/manifests/sha256:totallywrong', 'digest-invalid'],
    ['GET', `/v2/x/manifests/sha256:${'A'.repeat(64)}`, 'digest-invalid'],
    ['GET', `/v2/x/manifests/sha256:${'a'.repeat(63)}`, 'digest-invalid'],
    ['GET', `/v2/x/manifests/md5:${'a'.repeat(32)}`, 'digest-invalid'],
    ['GET', '/v2/x/blobs/sha256:../../x', 'route-unknown'],
    ['GET', '/v2/x/blobs/latest', 'digest-invalid'],
    ['PUT', '/v2/x/manifests/latest', 'method-unsupported'],
    ['DELETE', `/v2/x/blobs/${digest}`, 'method-unsupported'],
    ['POST', '/v2/x/blobs/uploads/', 'method-unsupported'],
    ['PATCH', '/v2/x/blobs/uploads/1', 'method-unsupported'],
    ['OPTIONS', '/v2/', 'method-unsupported'],
    ['DELETE', '/v2/x/tags/list', 'method-unsupported'],
    ['POST', '/ghcr.io/v2/x/blobs/uploads/', 'method-unsupported'],
  ];
  for (const [method, target, fault] of refused) {
    test(`${method} ${target.slice(0, 60)} is ${fault}`, () => assert.equal(faultOf(method, target), fault));
  }

  test('no target brings anything but a route or a fault, and no route leaves its place', () => {
    const part = fc.constantFrom(
      'v2',
      '..',
      '.',
      '',
      'a',
      'manifests',
      'blobs',
      '%2e%2e',
      '\\',
      'latest',
      digest,
      'é',
      '%',
    );
    fc.assert(
      fc.property(
        fc.oneof(
          fc.webUrl(),
          fc.string(),
          fc.array(part).map((parts) => `/v2/${parts.join('/')}`),
        ),
        (target) => {
          if (faultOf('GET', target) !== 'none') return;
          const route = parseRoute('GET', target);
          if (route.kind === 'blob') assert.match(route.digest, /^sha(256|512):[a-f0-9]+$/);
          if (route.kind === 'manifest' && 'tag' in route.reference)
            assert.match(route.reference.tag, /^[\w][\w.-]*$/);
        },
      ),
      { numRuns: 2000 },
    );
  });
});
