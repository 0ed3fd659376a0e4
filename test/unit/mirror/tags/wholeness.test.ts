import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { isWhole } from '../../../../src/mirror/tags/wholeness.ts';
import type { Digest } from '../../../../src/oci/digest.ts';
import type { Child } from '../../../../src/oci/manifest.ts';

const d = (name: string): Digest => name as Digest;
const part = (kind: Child['kind'], name: string, foreign = false): Child => ({
  digest: d(name),
  size: 1,
  kind,
  foreign,
});

function graph(manifests: Record<string, Child[]>, missing: string[] = []) {
  let looked = 0;
  return {
    has: (digest: Digest) => {
      looked += 1;
      return !missing.includes(digest);
    },
    isUnused: ({ digest }: Child) => digest === 'unused',
    children: (digest: Digest) => manifests[digest] ?? [],
    looked: () => looked,
  };
}

describe('whether an image is whole', () => {
  const image = [part('config', 'c'), part('layer', 'l'), part('layer', 'foreign', true)];

  test('config and layers, foreign ones excepted', async () => {
    assert.equal(await isWhole(d('i'), graph({ i: image }, ['foreign']), 'all'), true);
    assert.equal(await isWhole(d('i'), graph({ i: image }, ['l']), 'all'), false);
    assert.equal(await isWhole(d('i'), graph({ i: image }, ['l']), 'manifests'), true);
    assert.equal(await isWhole(d('i'), graph({ i: image }, ['i']), 'manifests'), false);
  });

  test('what nobody has ever asked for may be missing', async () => {
    const artifact = [part('config', 'unused'), part('layer', 'l')];
    assert.equal(await isWhole(d('i'), graph({ i: artifact }, ['unused']), 'all'), true);
    assert.equal(await isWhole(d('i'), graph({ i: artifact }, ['unused', 'l']), 'all'), false);
  });

  test('of an index one child is enough, and none is not', async () => {
    const index = { x: [part('manifest', 'a'), part('manifest', 'i')], i: image };
    assert.equal(await isWhole(d('x'), graph(index, ['a']), 'all'), true);
    assert.equal(await isWhole(d('x'), graph(index, ['a', 'l']), 'all'), false);
  });

  test('each digest is looked at once, however often and however deep it is named', async () => {
    const many = (name: string): Child[] => Array.from({ length: 160 }, () => part('manifest', name));
    const parts = graph({ a: many('b'), b: many('c'), c: many('i'), i: image }, ['l']);
    assert.equal(await isWhole(d('a'), parts, 'all'), false);
    assert.ok(parts.looked() <= 6, `${parts.looked()}`);
  });

  test('there is a bound, and others go on meanwhile', async () => {
    const images = Array.from({ length: 10_000 }, (_, i) => part('manifest', `i${i}`));
    const manifests = Object.fromEntries(images.map(({ digest }) => [digest, [part('layer', `l${digest}`)]]));
    const parts = {
      ...graph({ ...manifests, x: images }),
      has: (digest: Digest) => {
        looked += 1;
        return !digest.startsWith('l');
      },
    };
    let looked = 0;
    let turns = 0;
    const timer = setInterval(() => (turns += 1), 0);
    const answer = isWhole(d('x'), parts, 'all');
    await new Promise((resolve) => setImmediate(resolve));
    assert.ok(looked < 200, 'it has not done all of it at once');
    assert.equal(await answer, false);
    clearInterval(timer);
    assert.ok(looked <= 2001, `${looked}`);
  });
});
