import fc from 'fast-check';
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Intervals } from '../../../../src/store/ingest/intervals.ts';

test('intervals are a set of bytes, in any order of additions', () => {
  const range = fc.tuple(fc.nat({ max: 60 }), fc.nat({ max: 20 }));
  fc.assert(
    fc.property(fc.array(range, { maxLength: 30 }), (added) => {
      const intervals = new Intervals();
      const model = new Set<number>();
      for (const [start, length] of added) {
        intervals.add(start, start + length);
        for (let at = start; at < start + length; at++) model.add(at);
        assert.equal(intervals.total, model.size);
      }
      for (let at = 0; at <= 90; at++) {
        let end = at;
        while (model.has(end)) end += 1;
        assert.equal(intervals.endOfRun(at), end, `from ${at}`);
      }
    }),
  );
});
