import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Deadline } from '../../../src/util/deadline.ts';
import { MirrorError } from '../../../src/util/errors.ts';
import { Flight } from '../../../src/util/flight.ts';

const late = (): Error => new Error('late');
const never = new Promise<never>(() => undefined);
const later = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

describe('single flight with deadlines', () => {
  test('who joins waits no longer than its own deadline', async () => {
    const flight = new Flight<string, number>();
    void flight.within('a', new Deadline(60_000), () => never, late);
    await assert.rejects(
      flight.within('a', new Deadline(20), () => never, late),
      /late/,
    );
  });

  test('who joins and has time left inherits what its starter had no time for', async () => {
    const flight = new Flight<string, number>();
    const work = async ({ signal }: Deadline): Promise<number> => {
      await later(60);
      signal.throwIfAborted();
      return 1;
    };
    const first = flight.within('a', new Deadline(50), work, late);
    const second = flight.within('a', new Deadline(60_000), () => Promise.resolve(2), late);
    await assert.rejects(first, /late/);
    assert.deepEqual(await second, { value: 1, joined: true });
  });

  test('work is given up when the time of all who wait is over', async () => {
    const flight = new Flight<string, number>();
    let signal = AbortSignal.any([]);
    const work = (deadline: Deadline): Promise<number> => {
      ({ signal } = deadline);
      return never;
    };
    const both = [30, 60].map((ms) => flight.within('a', new Deadline(ms), work, late));
    await assert.rejects(both[0]!, /late/);
    assert.equal(signal.aborted, false);
    await assert.rejects(both[1]!, /late/);
    await later(20);
    assert.equal(signal.aborted, true);
  });

  test('what fails for another reason fails for all', async () => {
    const flight = new Flight<string, number>();
    const fail = async (): Promise<number> => {
      await later(5);
      throw new Error('no');
    };
    const both = [1, 2].map(() => flight.within('a', new Deadline(60_000), fail, late));
    for (const each of both) await assert.rejects(each, /no/);
  });

  test('who joined a question that was met with silence asks once more, and only then', async () => {
    const flight = new Flight<string, string>();
    let asked = 0;
    const ask = async (): Promise<string> => {
      asked += 1;
      const isFirst = asked === 1;
      await later(5);
      if (isFirst) throw new MirrorError('upstream-timeout', 'silence');
      return 'well again';
    };
    const all = [1, 2, 3].map(() => flight.within('a', new Deadline(60_000), ask, late));
    await assert.rejects(all[0]!, /silence/);
    assert.equal((await all[1]!).value, 'well again');
    assert.equal((await all[2]!).value, 'well again');
    assert.equal(asked, 2);

    const silent = (): Promise<string> =>
      later(5).then(() => {
        asked += 1;
        throw new MirrorError('upstream-timeout', 'silence');
      });
    const both = [1, 2].map(() => flight.within('a', new Deadline(60_000), silent, late));
    for (const each of both) await assert.rejects(each, /silence/);
    assert.equal(asked, 4);
  });
});
