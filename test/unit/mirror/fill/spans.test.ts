import fc from 'fast-check';
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { nextSpan, spanLength } from '../../../../src/mirror/fill/spans.ts';
import { Intervals } from '../../../../src/store/ingest/intervals.ts';

const MiB = 1024 * 1024;

describe('spans', () => {
  test('a span is a thirty-second of the blob, within bounds', () => {
    assert.equal(spanLength(100 * MiB, 16 * MiB), 16 * MiB);
    assert.equal(spanLength(1024 * MiB, 16 * MiB), 32 * MiB);
    assert.equal(spanLength(100_000 * MiB, 16 * MiB), 128 * MiB);
  });

  const size = 1000;
  const range = fc.tuple(fc.nat({ max: size - 1 }), fc.integer({ min: 1, max: 300 }));
  const intervals = fc
    .array(range, { maxLength: 6 })
    .map(
      (ranges) =>
        new Intervals(ranges.map(([start, length]) => ({ start, end: Math.min(size, start + length) }))),
    );
  const reader = range.map(([offset, length]) => ({ offset, end: Math.min(size, offset + length) }));

  test('one after the other they bring all that is wanted, each byte once, and nothing else', () => {
    fc.assert(
      fc.property(
        intervals,
        fc.array(reader, { maxLength: 5 }),
        fc.boolean(),
        fc.integer({ min: 10, max: 400 }),
        fc.integer({ min: 1, max: 4 }),
        (present, readers, isWholeWanted, spanBytes, connections) => {
          const wanted = new Set<number>();
          const want = (start: number, end: number): void => {
            for (let at = start; at < end; at++) if (!present.has({ start: at, end: at + 1 })) wanted.add(at);
          };
          if (isWholeWanted) want(0, size);
          for (const { offset, end } of readers) want(offset, end);
          const running: { start: number; end: number }[] = [];
          const brought = new Set<number>();
          for (let turn = 0; ; turn++) {
            assert.ok(turn < 2000, 'it comes to an end');
            const next = nextSpan({ size, present, running, readers, isWholeWanted, spanBytes });
            if (next && running.length < connections) {
              running.push({ start: next.start, end: next.end });
              continue;
            }
            const done = running.shift();
            if (!done) break;
            for (let at = done.start; at < done.end; at++) {
              assert.ok(!brought.has(at), `byte ${at} a second time`);
              brought.add(at);
            }
            present.add(done.start, done.end);
          }
          assert.deepEqual([...brought].sort(), [...wanted].sort());
        },
      ),
    );
  });

  test('what a reader stands before comes first, also within what another span was to bring later', () => {
    const situation = {
      size: 256 * MiB,
      present: new Intervals([{ start: 0, end: MiB }]),
      running: [{ start: MiB, end: 128 * MiB }],
      readers: [
        { offset: 0, end: 256 * MiB },
        { offset: 100 * MiB, end: 101 * MiB },
      ],
      isWholeWanted: true,
      spanBytes: 16 * MiB,
    };
    assert.deepEqual(nextSpan(situation), { start: 100 * MiB, end: 116 * MiB, urgent: true });
    const near = { ...situation, readers: [{ offset: 2 * MiB, end: 3 * MiB }] };
    assert.deepEqual(
      nextSpan(near),
      { start: 128 * MiB, end: 144 * MiB, urgent: false },
      'it will be there soon',
    );
    const idle = { ...situation, readers: [], isWholeWanted: false };
    assert.equal(nextSpan(idle), undefined);
  });
});
