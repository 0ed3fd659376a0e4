import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { getHeapStatistics } from 'node:v8';
import { IdleCollection } from '../../../src/util/garbage.ts';
import { until } from '../../support/mirror.ts';

const MB = 1_000_000;

test('after load the heap is given back, once the event loop is idle', async () => {
  await sleep(50);
  const heapBytes = (): number => getHeapStatistics().total_heap_size;
  const idle = new IdleCollection();
  const start = heapBytes();
  let kept: { name: string }[] = [];
  for (let i = 0; i < 2_000_000; i++) kept.push({ name: `tag ${i}` });
  const grown = heapBytes() - start;
  assert.ok(grown > 50 * MB, `${kept.length} objects took ${grown} bytes`);
  kept = [];
  await until(async () => {
    idle.check();
    await sleep(300);
    return heapBytes() - start < grown / 4;
  }, 'the heap is small again');
});
