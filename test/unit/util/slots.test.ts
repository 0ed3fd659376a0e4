import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Slots } from '../../../src/util/slots.ts';

test('places are given in the order of asking, and who gives up leaves the line', async () => {
  const slots = new Slots(1);
  const order: string[] = [];
  const queue = async (name: string): Promise<void> => {
    const done = await slots.take();
    order.push(name);
    done();
  };
  const give = await slots.take();
  const leaver = new AbortController();
  const waits = [queue('first'), assert.rejects(slots.take(leaver.signal), /gave up/), queue('third')];
  leaver.abort(new Error('gave up'));
  give();
  give();
  await Promise.all(waits);
  assert.deepEqual(order, ['first', 'third']);
  const one = await slots.take();
  await assert.rejects(slots.take(AbortSignal.timeout(1)), { name: 'TimeoutError' });
  one();
  (await slots.take())();
});
