import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Proxy } from '../../../../src/upstream/http/proxy.ts';

const cases: [except: string, host: string, port: string, covered: boolean][] = [
  ['', 'ghcr.io', '443', true],
  ['*', 'ghcr.io', '443', false],
  ['ghcr.io', 'ghcr.io', '443', false],
  ['ghcr.io', 'a.ghcr.io', '443', false],
  ['.ghcr.io', 'ghcr.io', '443', false],
  ['*.corp.example', 'x.corp.example', '443', false],
  ['hcr.io', 'ghcr.io', '443', true],
  ['quay.io, GHCR.io', 'ghcr.io', '443', false],
  ['ghcr.io:8443', 'ghcr.io', '443', true],
  ['ghcr.io:8443', 'ghcr.io', '8443', false],
  ['10.0.0.0/8', '10.1.2.3', '5000', false],
  ['10.0.0.0/8', '11.1.2.3', '5000', true],
  ['10.0.0.0/8', 'ten.example', '5000', true],
  ['::1', '::1', '80', false],
  ['[::1]:80', '::1', '80', false],
];
for (const [except, host, port, covered] of cases) {
  test(`${host}:${port} ${covered ? 'goes through it' : 'does not'} where "${except}" is excepted`, () => {
    const proxy = new Proxy({ url: new URL('http://proxy:3128'), except, isFromEnvironment: false });
    assert.equal(proxy.covers(host, port), covered);
  });
}

test('nobody means loopback by the environment, or may well do so in a configuration', () => {
  for (const isFromEnvironment of [true, false]) {
    const proxy = new Proxy({ url: new URL('http://proxy:3128'), except: '', isFromEnvironment });
    for (const host of ['localhost', '127.0.0.1', '::1'])
      assert.equal(proxy.covers(host, '80'), !isFromEnvironment);
  }
});
