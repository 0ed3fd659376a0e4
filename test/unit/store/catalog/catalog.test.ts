import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { blobMediaType, type Descriptor } from '../../../../src/oci/content.ts';
import { createRepo } from '../../../../src/oci/repo.ts';
import { Catalog, type CatalogOptions } from '../../../../src/store/catalog/catalog.ts';
import { randomBlob } from '../../../support/images.ts';

const repo = createRepo('x.io', 'a/b', 'x.io');
const newBlob = (): Descriptor => ({ digest: randomBlob(8).digest, size: 8, mediaType: blobMediaType });

async function directoryFor(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'layercache-catalog-'));
  t.after(() => rm(directory, { recursive: true }));
  return directory;
}

function open(t: TestContext, file: string, options: CatalogOptions = {}): Catalog {
  const catalog = new Catalog(file, options);
  t.after(() => catalog.close());
  return catalog;
}

describe('the tables of a catalog', () => {
  test('continue on a new file when the file was deleted', async (t) => {
    const file = join(await directoryFor(t), 'catalog.db');
    const catalog = open(t, file);
    const [before, after] = [newBlob(), newBlob()];
    catalog.blobs.add(before, [], 1);
    for (const ending of ['', '-wal', '-shm']) await rm(file + ending);
    await catalog.connection.rescue(file);
    assert.deepEqual(catalog.blobs.get(before.digest), before);
    catalog.blobs.add(after, [], 2);
    catalog.links.add(after.digest, repo, { isPublic: false, now: 2 });

    const other = open(t, file);
    assert.deepEqual(other.blobs.get(before.digest), before);
    assert.deepEqual(other.links.reposOf(after.digest), [{ registry: 'x.io', repo: 'a/b' }]);
  });

  test('in memory continue on the file, without the writes to memory', async (t) => {
    const file = join(await directoryFor(t), 'catalog.db');
    const first = new Catalog(file);
    const [kept, lost, added] = [newBlob(), newBlob(), newBlob()];
    first.blobs.add(kept, [], 1);
    first.close();

    const catalog = open(t, file, { inMemory: true });
    catalog.blobs.add(lost, [], 2);
    assert.deepEqual(catalog.blobs.get(kept.digest), kept);
    assert.deepEqual(catalog.blobs.get(lost.digest), lost);
    catalog.connection.openFile(file);
    assert.deepEqual(catalog.blobs.get(kept.digest), kept);
    assert.equal(catalog.blobs.get(lost.digest), undefined);
    catalog.blobs.add(added, [], 3);
    assert.deepEqual(open(t, file).blobs.get(added.digest), added);
  });

  test('are read as far as possible and not written once damage is known', async (t) => {
    const found: unknown[] = [];
    const file = join(await directoryFor(t), 'catalog.db');
    const catalog = open(t, file, { onDamaged: (error) => found.push(error) });
    const blob = newBlob();
    catalog.blobs.add(blob, [], 1);
    for (let i = 0; i < 2; i++) catalog.connection.recordDamage(new Error('a page is garbage'));
    assert.equal(found.length, 1);
    assert.ok(catalog.connection.isDamaged);
    catalog.links.add(blob.digest, repo, { isPublic: true, now: 2 });
    assert.equal(catalog.links.get(blob.digest, 'x.io', 'a/b'), undefined);
    assert.deepEqual(catalog.blobs.get(blob.digest), blob);
    assert.throws(() => catalog.blobs.remove(blob.digest), /a page is garbage/);
  });

  test('report moved and removed tags, and no others', async (t) => {
    const moved: string[] = [];
    const onTagMoved = (registry: string, name: string, tag: string): unknown =>
      moved.push(`${registry}/${name}:${tag}`);
    const catalog = open(t, join(await directoryFor(t), 'catalog.db'), { onTagMoved });
    const row = { ...newBlob(), checkedAt: 1, registryCheckedAt: 1, isUpstreamStale: false, previous: null };
    catalog.tags.set(repo, 'new', row, true);
    catalog.tags.set(repo, 'new', { ...row, checkedAt: 2 }, false);
    assert.equal(catalog.tags.moved, 1);
    assert.deepEqual(catalog.tags.get(repo, 'new'), { ...row, checkedAt: 2 });
    catalog.tags.remove(repo, 'new');
    assert.deepEqual(moved, ['x.io/a/b:new', 'x.io/a/b:new']);
    assert.equal(catalog.tags.get(repo, 'new'), undefined);
  });
});
