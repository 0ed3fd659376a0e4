import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Pattern } from '../../../src/oci/pattern.ts';
import { createRepo } from '../../../src/oci/repo.ts';

const cases: [pattern: string, registry: string, name: string, tag: string | undefined, matches: boolean][] =
  [
    ['docker.io/library/alpine', 'docker.io', 'alpine', '3', true],
    ['docker.io/library/alpine', 'docker.io', 'alpine', undefined, true],
    ['docker.io/alpine', 'docker.io', 'library/alpine', '3', true],
    ['docker.io/*', 'docker.io', 'alpine', '3', true],
    ['docker.io/*', 'docker.io', 'acme/alpine', '3', false],
    ['docker.io/**', 'docker.io', 'acme/alpine', '3', true],
    ['docker.io/library/alpine:3*', 'docker.io', 'alpine', '3.19', true],
    ['docker.io/library/alpine:3*', 'docker.io', 'alpine', 'edge', false],
    ['docker.io/library/alpine:3*', 'docker.io', 'alpine', undefined, false],
    ['docker.io/library/*:*-20*', 'docker.io', 'debian', 'bookworm-20240101', true],
    ['ghcr.io/acme/**', 'ghcr.io', 'acme/a/b', 'x', true],
    ['ghcr.io/acme/**', 'ghcr.io', 'acmex/a', 'x', false],
    ['ghcr.io/acme/*/b', 'ghcr.io', 'acme/a/b', 'x', true],
    ['ghcr.io/acme/*/b', 'ghcr.io', 'acme/a/c/b', 'x', false],
    ['reg.example:5000/x:1', 'reg.example:5000', 'x', '1', true],
    ['reg.example:5000/x', 'reg.example:5000', 'x', '1', true],
    ['ghcr.io/a.b', 'ghcr.io', 'axb', '1', false],
    ['**/x', 'ghcr.io', 'a/x', '1', true],
  ];

for (const [pattern, registry, name, tag, matches] of cases) {
  test(`${pattern} ${matches ? 'matches' : 'does not match'} ${registry}/${name}:${tag ?? 'a digest'}`, () => {
    assert.equal(Pattern.parse(pattern)?.matches(createRepo(registry, name, registry), tag), matches);
  });
}

test('what is no pattern is refused', () => {
  for (const text of ['', 'alpine', 'docker.io/', '/x', 'a b/c', 'docker.io/x:', 'docker.io/(a|b)'])
    assert.equal(Pattern.parse(text), undefined, text);
});
