import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { WriteQueue } from '../../src/store/write-queue.ts';

const busy = (): Error => Object.assign(new Error('locked'), { code: 'SQLITE_BUSY' });

describe('writes to the catalog', () => {
  test('wait while it is locked, and keep their order', async () => {
    const done: number[] = [];
    const queue = new WriteQueue((error) => assert.fail(String(error)));
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
    await queue.during(async () => {
      queue.do(write(6));
      await Promise.resolve();
      assert.equal(done.length, 6);
    });
    assert.equal(done.length, 7);
  });

  test('who cannot wait in it is told when it may write', async () => {
    const queue = new WriteQueue(() => undefined);
    const { promise, resolve } = Promise.withResolvers<undefined>();
    const during = queue.during(() => promise);
    let isReady = false;
    const ready = queue.ready().then(() => (isReady = true));
    await new Promise((turn) => setImmediate(turn));
    assert.equal(isReady, false);
    resolve(undefined);
    await Promise.all([during, ready]);
  });

  test('works may overlap: nothing is written before the last has ended', async () => {
    const queue = new WriteQueue((error) => assert.fail(String(error)));
    const [first, second] = [Promise.withResolvers<undefined>(), Promise.withResolvers<undefined>()];
    const both = [queue.during(() => first.promise), queue.during(() => second.promise)];
    let isWritten = false;
    queue.do(() => (isWritten = true));
    first.resolve(undefined);
    await both[0];
    assert.equal(isWritten, false);
    second.resolve(undefined);
    await both[1];
    assert.equal(isWritten, true);
  });

  test('other errors are the caller’s, or, of what had to wait, told', async () => {
    const lost: unknown[] = [];
    const queue = new WriteQueue((error) => lost.push(error));
    const fail = (): void => {
      throw new Error('disk full');
    };
    assert.throws(() => queue.do(fail), /disk full/);
    await queue.during(async () => {
      queue.do(fail);
      await Promise.resolve();
    });
    assert.equal(lost.length, 1);
  });
});
