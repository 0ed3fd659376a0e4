import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { WriteQueue } from '../../../../src/store/catalog/write-queue.ts';

const inOne = (work: () => void): void => work();
const busy = (): Error => Object.assign(new Error('locked'), { code: 'SQLITE_BUSY' });

describe('writes to the catalog', () => {
  test('wait while the catalog is locked, and keep their order', async () => {
    const done: number[] = [];
    const queue = new WriteQueue((error) => assert.fail(String(error)), inOne);
    let isLocked = true;
    const write = (i: number) => (): void => {
      if (isLocked) throw busy();
      done.push(i);
    };
    for (let i = 0; i < 5; i++) queue.do(write(i));
    assert.deepEqual(done, []);
    isLocked = false;
    queue.do(write(5));
    queue.flush();
    assert.deepEqual(done, [0, 1, 2, 3, 4, 5]);
    await queue.pauseDuring(async () => {
      queue.do(write(6));
      await Promise.resolve();
      assert.equal(done.length, 6);
    });
    assert.equal(done.length, 7);
  });

  test('write() resolves to the result, once written', async () => {
    const queue = new WriteQueue(() => undefined, inOne);
    const { promise, resolve } = Promise.withResolvers<undefined>();
    const during = queue.pauseDuring(() => promise);
    let isWritten = false;
    const written = queue.write(() => {
      isWritten = true;
      return 7;
    });
    await new Promise((turn) => setImmediate(turn));
    assert.equal(isWritten, false);
    resolve(undefined);
    await during;
    assert.equal(await written, 7);
    const failed = queue.write(() => {
      throw new Error('disk full');
    });
    await assert.rejects(failed, /disk full/);
  });

  test('a long queue is written in batches, yielding to the event loop in between', async () => {
    let transactions = 0;
    const queue = new WriteQueue(
      (error) => assert.fail(String(error)),
      (work) => {
        transactions += 1;
        work();
      },
    );
    const order: number[] = [];
    const until = (at: number): void => {
      while (performance.now() < at);
    };
    let written: Promise<unknown> | undefined;
    await queue.pauseDuring(async () => {
      for (let i = 0; i < 100; i++) {
        queue.do(() => {
          until(performance.now() + 1);
          order.push(i);
        });
      }
      written = queue.write(() => order.push(100));
      await Promise.resolve();
    });
    assert.ok(order.length < 50, String(order.length));
    queue.do(() => order.push(101));
    await written;
    assert.deepEqual(order.slice(0, 101), [...Array(101).keys()]);
    assert.ok(transactions < 50 && transactions > 4, String(transactions));
    queue.flush();
    assert.equal(order.at(-1), 101);
  });

  test('when a batch fails, its writes are retried one by one: only the failing one is lost', async () => {
    const lost: unknown[] = [];
    const done = new Set<number>();
    const queue = new WriteQueue(
      (error) => lost.push(error),
      (work) => {
        const before = [...done];
        try {
          work();
        } catch (error) {
          done.clear();
          for (const each of before) done.add(each);
          throw error;
        }
      },
    );
    await queue.pauseDuring(async () => {
      for (let i = 0; i < 5; i++) {
        queue.do(() => {
          if (i === 3) throw new Error('disk full');
          done.add(i);
        });
      }
      await Promise.resolve();
    });
    assert.deepEqual([...done], [0, 1, 2, 4]);
    assert.equal(lost.length, 1);
  });

  test('overlapping pauses: nothing is written before the last has ended', async () => {
    const queue = new WriteQueue((error) => assert.fail(String(error)), inOne);
    const [first, second] = [Promise.withResolvers<undefined>(), Promise.withResolvers<undefined>()];
    const both = [queue.pauseDuring(() => first.promise), queue.pauseDuring(() => second.promise)];
    let isWritten = false;
    queue.do(() => (isWritten = true));
    first.resolve(undefined);
    await both[0];
    assert.equal(isWritten, false);
    second.resolve(undefined);
    await both[1];
    assert.equal(isWritten, true);
  });

  test('other errors are thrown, or, for deferred writes, passed to onError', async () => {
    const lost: unknown[] = [];
    const queue = new WriteQueue((error) => lost.push(error), inOne);
    const fail = (): void => {
      throw new Error('disk full');
    };
    assert.throws(() => queue.do(fail), /disk full/);
    await queue.pauseDuring(async () => {
      queue.do(fail);
      await Promise.resolve();
    });
    assert.equal(lost.length, 1);
  });
});
