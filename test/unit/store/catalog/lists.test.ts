import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { digestOf } from '../../../../src/oci/digest.ts';
import { createRepo } from '../../../../src/oci/repo.ts';
import { Catalog } from '../../../../src/store/catalog/catalog.ts';

async function open(t: TestContext, maxListBytes: () => number): Promise<Catalog> {
  const directory = await mkdtemp(join(tmpdir(), 'layercache-lists-'));
  const catalog = new Catalog(join(directory, 'catalog.db'), { maxListBytes });
  t.after(async () => {
    catalog.close();
    await rm(directory, { recursive: true });
  });
  return catalog;
}

const repo = (i: number) => createRepo('x.io', `r${i}`, 'x.io');

function set({ lists }: Catalog, i: number, size: number): void {
  const body = Buffer.alloc(size, i);
  const row = { digest: digestOf(body), size, next: null, filters: null, checkedAt: i };
  lists.set(repo(i), 'tags/', row, body);
}

const kept = ({ lists }: Catalog): number[] =>
  Array.from({ length: 20 }, (_, i) => i).filter((i) => lists.get(repo(i), 'tags/') !== undefined);

describe('lists', () => {
  test('checked longest ago are removed beyond the limit', async (t) => {
    const catalog = await open(t, () => 100_000);
    for (let i = 0; i < 20; i++) set(catalog, i, 20_000);
    assert.ok(kept(catalog).length <= 5);
    assert.equal(kept(catalog).at(-1), 19);
  });

  test('are removed when the limit is lowered', async (t) => {
    let limit = Infinity;
    const catalog = await open(t, () => limit);
    for (let i = 0; i < 20; i++) set(catalog, i, 20_000);
    catalog.lists.keepToLimits();
    assert.equal(kept(catalog).length, 20);
    limit = 50_000;
    catalog.lists.keepToLimits();
    assert.deepEqual(kept(catalog), [18, 19]);
  });

  test('larger than the limit for all lists are not stored, and remove the page they replace', async (t) => {
    const catalog = await open(t, () => 50_000);
    set(catalog, 1, 1000);
    set(catalog, 2, 1000);
    set(catalog, 2, 60_000);
    assert.deepEqual(kept(catalog), [1]);
  });
});
