import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Deadline } from '../../src/util/deadline.ts';
import { Flight } from '../../src/util/flight.ts';

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

  test('who joins and has time left does anew what its starter had no time for', async () => {
    const flight = new Flight<string, number>();
    const short = new Deadline(50);
    const first = flight.within(
      'a',
      short,
      async () => {
        await later(60);
        throw new Error('its time was over');
      },
      late,
    );
    const second = flight.within('a', new Deadline(60_000), () => Promise.resolve(2), late);
    await assert.rejects(first, /its time was over/);
    assert.deepEqual(await second, { value: 2, joined: false });
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
});
