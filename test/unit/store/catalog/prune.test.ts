import Database from 'better-sqlite3';
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { blobMediaType } from '../../../../src/oci/content.ts';
import { createRepo } from '../../../../src/oci/repo.ts';
import { Catalog } from '../../../../src/store/catalog/catalog.ts';
import { prune } from '../../../../src/store/catalog/prune.ts';
import { randomBlob } from '../../../support/images.ts';

test('links to absent blobs and tags beyond the limit are removed, while another connection writes', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'layercache-prune-'));
  const file = join(directory, 'catalog.db');
  const catalog = new Catalog(file);
  const db = new Database(file);
  t.after(async () => {
    db.close();
    catalog.close();
    await rm(directory, { recursive: true });
  });
  const repo = createRepo('x.io', 'a/b', 'x.io');
  const digests = Array.from({ length: 1000 }, () => randomBlob(8).digest);
  const [stored, arriving, fresh] = digests;
  catalog.connection.transaction(() => {
    for (const digest of digests) catalog.links.add(digest, repo, { isPublic: true, now: 1000 });
    catalog.links.add(fresh!, repo, { isPublic: false, now: 5000 });
    catalog.blobs.add({ digest: stored!, size: 1, mediaType: blobMediaType }, [], 1);
    catalog.partials.set({
      registry: 'x.io',
      digest: arriving!,
      file: 'f',
      size: 2,
      present: '[]',
      synced: '[]',
      boot: '',
      updatedAt: 1,
    });
    digests.forEach((digest, i) => {
      const row = {
        digest,
        size: 1,
        mediaType: 'a/b',
        checkedAt: i,
        registryCheckedAt: i,
        isUpstreamStale: false,
        previous: null,
      };
      catalog.tags.set(repo, `t${i}`, row, true);
    });
  });
  assert.equal(catalog.tags.moved, 1000);
  const running = prune(db, { file, linksBefore: 2000, maxTags: 100 });
  // Another connection can write between its steps.
  for (let i = 0; i < 20; i++) {
    catalog.pins.add(`x.io/p${i}`, 1);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  assert.deepEqual(await running, { links: 2 * 998 - 1, tags: 900, children: 0 });
  for (const digest of [stored!, arriving!, fresh!]) assert.ok(catalog.links.get(digest, 'x.io', 'a/b'));
  assert.equal(catalog.links.get(digests[3]!, 'x.io', 'a/b'), undefined);
  assert.ok(catalog.tags.get(repo, 't0'), 'its manifest is stored');
  assert.equal(catalog.tags.get(repo, 't1'), undefined);
  assert.ok(catalog.tags.get(repo, 't999'));
});
