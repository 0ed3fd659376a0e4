import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Budget } from '../../../src/util/budget.ts';

const never = new AbortController().signal;

test('bytes are given in the order of asking, and no more than there are', async () => {
  const budget = new Budget(20);
  const other = await budget.take('b', 10, never);
  const six = await budget.take('a', 6, never);
  const order: string[] = [];
  const take = (owner: string, bytes: number, name: string): Promise<() => void> =>
    budget.take(owner, bytes, never).then((give) => {
      order.push(name);
      return give;
    });
  const five = take('c', 5, 'five');
  const one = take('d', 1, 'one');
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(order, [], 'a small one does not pass by');
  six();
  six();
  (await five)();
  (await one)();
  assert.deepEqual(order, ['five', 'one']);
  other();
  assert.equal(budget.used, 0);
  const all = await budget.take('a', 1000, never);
  assert.equal(budget.used, 10, 'what is too much takes all that one may have');
  const leaving = new AbortController();
  const left = budget.take('a', 1, leaving.signal);
  leaving.abort(new Error('gone'));
  await assert.rejects(left, /gone/);
  all();
  assert.equal(budget.used, 0);
});

test('one who keeps its bytes does not stop others', async () => {
  const budget = new Budget(20);
  const kept = await budget.take('slow', 10, never);
  const waiting = budget.take('slow', 4, never);
  for (let i = 0; i < 3; i++) (await budget.take('well', 10, never))();
  kept();
  (await waiting)();
  assert.equal(budget.used, 0);
});
