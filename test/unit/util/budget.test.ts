import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Budget } from '../../../src/util/budget.ts';

const never = new AbortController().signal;

test('bytes are given in the order of asking, and no more than there are', async () => {
  const budget = new Budget(10);
  const six = await budget.take(6, never);
  const order: string[] = [];
  const five = budget.take(5, never).then((give) => {
    order.push('five');
    return give;
  });
  const one = budget.take(1, never).then((give) => {
    order.push('one');
    return give;
  });
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(order, [], 'a small one does not pass by');
  six();
  six();
  (await five)();
  (await one)();
  assert.deepEqual(order, ['five', 'one']);
  assert.equal(budget.used, 0);
  const all = await budget.take(1000, never);
  assert.equal(budget.used, 10, 'what is too much takes all');
  const leaving = new AbortController();
  const left = budget.take(1, leaving.signal);
  leaving.abort(new Error('gone'));
  await assert.rejects(left, /gone/);
  all();
  assert.equal(budget.used, 0);
});
