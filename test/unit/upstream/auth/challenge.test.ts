import fc from 'fast-check';
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseChallenges, type Challenge } from '../../../../src/upstream/auth/challenge.ts';

const hub = {
  realm: 'https://auth.docker.io/token',
  service: 'registry.docker.io',
  scope: 'repository:library/alpine:pull',
};

describe('challenge', () => {
  const cases: [title: string, header: string | string[] | undefined, expected: Challenge[]][] = [
    ['none', undefined, []],
    [
      'as Docker Hub sends it',
      `Bearer realm="${hub.realm}",service="${hub.service}",scope="${hub.scope}"`,
      [{ scheme: 'bearer', params: hub }],
    ],
    [
      'unquoted',
      `bearer realm=${hub.realm}, scope=${hub.scope}`,
      [{ scheme: 'bearer', params: { realm: hub.realm, scope: hub.scope } }],
    ],
    [
      'two schemes in one header',
      'Negotiate, Basic realm="a, b", Bearer realm="c"',
      [
        { scheme: 'negotiate', params: {} },
        { scheme: 'basic', params: { realm: 'a, b' } },
        { scheme: 'bearer', params: { realm: 'c' } },
      ],
    ],
    [
      'two headers',
      ['Basic realm="x"', 'BEARER Realm="y"'],
      [
        { scheme: 'basic', params: { realm: 'x' } },
        { scheme: 'bearer', params: { realm: 'y' } },
      ],
    ],
    [
      'escapes and spaces',
      'Bearer  realm = "a\\"b\\\\c" ,  error="invalid_token"',
      [{ scheme: 'bearer', params: { realm: 'a"b\\c', error: 'invalid_token' } }],
    ],
    ['a quote that never ends', 'Bearer realm="abc', [{ scheme: 'bearer', params: { realm: 'abc' } }]],
    [
      'the first of two equal names',
      'Bearer realm="a",realm="b"',
      [{ scheme: 'bearer', params: { realm: 'a' } }],
    ],
  ];
  for (const [title, header, expected] of cases) {
    test(title, () => assert.deepEqual(parseChallenges(header), expected));
  }

  test('what is written in quotes is read back', () => {
    const name = fc.stringMatching(/^[a-z]{1,8}$/);
    // Names that JavaScript objects already have are none that a server sends.
    const params = fc.dictionary(name, fc.string({ unit: 'grapheme-ascii' }), {
      minKeys: 1,
      noNullPrototype: true,
    });
    fc.assert(
      fc.property(params, (given) => {
        const text = Object.entries(given).map(
          ([key, value]) => `${key}="${value.replace(/["\\]/g, '\\$&')}"`,
        );
        assert.deepEqual(parseChallenges(`Bearer ${text.join(', ')}`), [{ scheme: 'bearer', params: given }]);
      }),
    );
  });

  test('junk is passed over', () => {
    fc.assert(fc.property(fc.string({ maxLength: 500 }), (junk) => void parseChallenges(junk)));
  });
});
