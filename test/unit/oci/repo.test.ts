import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createRepo } from '../../../src/oci/repo.ts';
import { isFault } from '../../../src/util/errors.ts';

test('a bare name on Docker Hub is an official image, elsewhere it is itself', () => {
  assert.equal(createRepo('docker.io', 'alpine', 'docker.io').key, 'docker.io/library/alpine');
  assert.equal(createRepo('docker.io', 'grafana/loki', 'docker.io').key, 'docker.io/grafana/loki');
  assert.equal(createRepo('quay.io', 'alpine', 'quay.io').key, 'quay.io/alpine');
});

for (const name of ['a__b', 'a--b', 'a.b/c-d_e/f', '0', 'a/manifests/b']) {
  test(`${name} is a name`, () => assert.equal(createRepo('x.io', name, 'x.io').name, name));
}

for (const name of [
  'UPPER/x',
  'a//b',
  '-a',
  'a_-b',
  'a..b',
  'a/',
  '/a',
  '',
  '.',
  '..',
  'a/../b',
  'é',
  'a b',
  'a'.repeat(256),
]) {
  test(`${JSON.stringify(name.slice(0, 20))} is no name`, () => {
    assert.throws(
      () => createRepo('x.io', name, 'x.io'),
      (error) => isFault(error, 'name-invalid'),
    );
  });
}
