import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { setImmediate as yieldToEventLoop } from 'node:timers/promises';
import { blobMediaType } from '../../../../src/oci/content.ts';
import type { Digest } from '../../../../src/oci/digest.ts';
import type { Child } from '../../../../src/oci/manifest.ts';
import { patternOf } from '../../../../src/oci/pattern.ts';
import { createRepo } from '../../../../src/oci/repo.ts';
import { Catalog } from '../../../../src/store/catalog/catalog.ts';
import { Pins } from '../../../../src/store/room/pins.ts';
import { createLog } from '../../../../src/telemetry/log.ts';
import { systemClock } from '../../../../src/util/clock.ts';
import { blobOf, ociIndex, ociManifest } from '../../../support/images.ts';

const repo = createRepo('x.io', 'a/b', 'x.io');
const layersOfImage = 8;

const named = (name: string): Digest => blobOf(name).digest;
const childOf = (digest: Digest, kind: Child['kind']): Child => ({ digest, size: 1, kind, foreign: false });

describe('pins under concurrency', () => {
  async function open(t: TestContext, images: number): Promise<{ catalog: Catalog; pins: Pins }> {
    const directory = await mkdtemp(join(tmpdir(), 'layercache-pins-'));
    const opened: { pins?: Pins } = {};
    const catalog = new Catalog(join(directory, 'catalog.db'), {
      onTagMoved: (registry, name, tag) => opened.pins?.onTagChanged(registry, name, tag),
    });
    catalog.connection.transaction(() => {
      for (let i = 0; i < images; i++) addImage(catalog, `i${i}`);
    });
    const { events: log } = createLog({ level: 'silent' });
    const pins = new Pins(() => ({ pins: [], maxBytes: 1e12 }), { catalog, clock: systemClock, log });
    opened.pins = pins;
    t.after(async () => {
      await pins.close();
      catalog.close();
      await rm(directory, { recursive: true });
    });
    return { catalog, pins };
  }

  function addImage(catalog: Catalog, name: string, layers = layersOfImage): void {
    const digests = Array.from({ length: layersOfImage }, (_, i) => named(`${name} layer ${i}`));
    for (const digest of digests.slice(0, layers))
      catalog.blobs.add({ digest, size: 1, mediaType: blobMediaType }, [], 1);
    const parts = digests.map((digest) => childOf(digest, 'layer'));
    catalog.blobs.add({ digest: named(name), size: 1, mediaType: ociManifest }, parts, 1);
    const index = named(`${name} index`);
    catalog.blobs.add({ digest: index, size: 1, mediaType: ociIndex }, [childOf(named(name), 'manifest')], 1);
    point(catalog, name, index);
  }

  function point(catalog: Catalog, tag: string, digest: Digest): void {
    const row = { size: 1, mediaType: ociIndex, checkedAt: 1, registryCheckedAt: 1, isUpstreamStale: false };
    catalog.tags.set(repo, tag, { ...row, digest, previous: null }, true);
  }

  test('a scan never blocks the event loop for long', async (t) => {
    const { catalog, pins } = await open(t, 1500);
    let longest = 0;
    let isOver = false;
    // CPU time of this thread only, not of others.
    const workedMs = (): number => {
      const { user, system } = process.threadCpuUsage();
      return (user + system) / 1000;
    };
    const watch = async (): Promise<void> => {
      for (let last = workedMs(); !isOver; last = workedMs()) {
        await yieldToEventLoop();
        longest = Math.max(longest, workedMs() - last);
      }
    };
    const watching = watch();
    assert.equal(await pins.pin(patternOf('x.io/**')), 1500 * (layersOfImage + 2) * 4096);
    assert.ok(catalog.pins.isPinned(named('i7 layer 3')));
    assert.equal(await pins.unpin(patternOf('x.io/**')), 0);
    assert.ok(!catalog.pins.isPinned(named('i7 layer 3')));
    isOver = true;
    await watching;
    t.diagnostic(`held up for ${Math.round(longest)} ms at most`);
    assert.ok(longest < 150, `${longest}`);
  });

  test('blobs stored and tags moved during a scan are pinned in the end', async (t) => {
    const { catalog, pins } = await open(t, 300);
    catalog.connection.transaction(() => addImage(catalog, 'late', 0));
    const layer = named('late layer 0');
    const isDone = pins.pin(patternOf('x.io/a/b:*'));
    let turns = 0;
    const disturb = async (): Promise<void> => {
      for (; turns < 30; turns++) {
        await yieldToEventLoop();
        if (turns === 10) addImage(catalog, 'new');
        if (turns === 10) for (const part of ['new', 'new index']) pins.onStored(named(part));
        if (turns === 10) for (let i = 0; i < layersOfImage; i++) pins.onStored(named(`new layer ${i}`));
        if (turns === 20) point(catalog, 'i5', named('i6 index'));
        // A blob that the scan has, or has not, reached.
        if (turns === 25) catalog.blobs.add({ digest: layer, size: 1, mediaType: blobMediaType }, [], 1);
        if (turns === 25) pins.onStored(layer);
      }
    };
    await Promise.all([isDone, disturb()]);
    await pins.refresh();
    for (const name of ['late layer 0', 'new', 'new index', 'new layer 7', 'i6 layer 1'])
      assert.ok(catalog.pins.isPinned(named(name)), name);
    assert.ok(!catalog.pins.isPinned(named('i5 layer 1')), 'what the tag pointed to before');
    await assert.rejects(pins.unpin(patternOf('x.io/other')), /not pinned/);
    assert.equal(await pins.unpin(patternOf('x.io/a/b:*')), 0);
    assert.deepEqual(catalog.pins.pinnedAfter('', 1), []);
  });

  test('concurrent changes are serialized', async (t) => {
    const { catalog, pins } = await open(t, 50);
    await Promise.all([
      pins.pin(patternOf('x.io/a/b:i1')),
      pins.pin(patternOf('x.io/a/b:i2')),
      pins.unpin(patternOf('x.io/a/b:i1')),
    ]);
    assert.ok(catalog.pins.isPinned(named('i2')));
    assert.ok(!catalog.pins.isPinned(named('i1')));
  });
});
