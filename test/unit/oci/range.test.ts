import fc from 'fast-check';
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  enclosingRange,
  parseContentRange,
  parseRanges,
  resolveWant,
  resolveWants,
  type ByteRange,
  type Want,
} from '../../../src/oci/range.ts';
import { isFault } from '../../../src/util/errors.ts';

/** What a header asks of content of a size. */
function ask(header: string | undefined, size: number): ByteRange | string {
  const want = parseRanges(header);
  if (Array.isArray(want)) return 'several';
  return want === 'whole' ? want : (resolveWant(want as Want, size) ?? 'unsatisfiable');
}

describe('range', () => {
  const size = 2048;
  const cases: [header: string | undefined, expected: ByteRange | string][] = [
    [undefined, 'whole'],
    ['bytes=500-1499', { start: 500, end: 1500 }],
    ['bytes=500-', { start: 500, end: 2048 }],
    ['bytes=-500', { start: 1548, end: 2048 }],
    ['bytes=-5000', { start: 0, end: 2048 }],
    ['bytes=2000-5000', { start: 2000, end: 2048 }],
    ['bytes=0-2048', { start: 0, end: 2048 }],
    ['bytes=0-0', { start: 0, end: 1 }],
    ['bytes=500-0', 'unsatisfiable'],
    ['bytes=5000-10000', 'unsatisfiable'],
    ['bytes=2048-', 'unsatisfiable'],
    ['bytes=-0', 'unsatisfiable'],
    [`bytes=${'9'.repeat(40)}-`, 'unsatisfiable'],
    ['bytes=0-1,5-6', 'several'],
    ['bytes=0-1,x', 'whole'],
    ['bytes=0-1,', { start: 0, end: 2 }],
    ['bytes= 0-1 ', { start: 0, end: 2 }],
    ['items=0-1', 'whole'],
    ['bytes=abc', 'whole'],
    ['bytes=', 'whole'],
    ['bytes=-', 'whole'],
    ['bytes=5', 'whole'],
    ['bytes=--5', 'whole'],
  ];
  for (const [header, expected] of cases) {
    test(`${header ?? 'none'} of ${size}`, () => assert.deepEqual(ask(header, size), expected));
  }

  describe('several', () => {
    const several = (header: string, of = size) => resolveWants(parseRanges(header), of);
    test('in the order in which they were asked for, also adjacent ones; what is not there is left out', () => {
      assert.deepEqual(several('bytes=300-399, 0-99,100-199 ,-10,5000-,7-3'), [
        { start: 300, end: 400 },
        { start: 0, end: 100 },
        { start: 100, end: 200 },
        { start: 2038, end: 2048 },
      ]);
      assert.deepEqual(several('bytes=5000-,-0'), []);
    });

    test('at most 256, and together no more than the whole', () => {
      const ranges = (count: number) =>
        `bytes=${Array.from({ length: count }, (_, i) => `${i}-${i}`).join(',')}`;
      assert.equal(several(ranges(256)).length, 256);
      for (const header of [ranges(257), ranges(10_000), 'bytes=0-,0-', 'bytes=0-1500,500-2000'])
        assert.throws(
          () => several(header),
          (error) => isFault(error, 'ranges-unsupported'),
        );
      assert.equal(several('bytes=0-99,50-149').length, 2);
    });

    test('their hull is known before the size is', () => {
      assert.deepEqual(enclosingRange(parseRanges('bytes=5-6,1-2,9-9') as Want[]), { start: 1, end: 10 });
      assert.deepEqual(enclosingRange(parseRanges('bytes=5-6,7-') as Want[]), { start: 5, end: Infinity });
      assert.equal(enclosingRange(parseRanges('bytes=5-6,-2') as Want[]), 'whole');
    });
  });

  test('whatever is asked for lies within the content', () => {
    fc.assert(
      fc.property(fc.string(), fc.nat(), fc.nat(), fc.nat({ max: 1e6 }), (junk, a, b, of) => {
        for (const header of [`bytes=${a}-${b}`, `bytes=${a}-`, `bytes=-${b}`, `bytes=${junk}`]) {
          const range = ask(header, of);
          if (typeof range === 'string') continue;
          assert.ok(range.start >= 0 && range.start < range.end && range.end <= of, header);
        }
      }),
    );
  });

  test('a range says itself what it is, and is read back the same', () => {
    fc.assert(
      fc.property(fc.nat(), fc.nat(), fc.nat(), (start, length, rest) => {
        const [end, total] = [start + length + 1, start + length + 1 + rest];
        const parsed = parseContentRange(`bytes ${start}-${end - 1}/${total}`);
        assert.deepEqual(parsed, { range: { start, end }, total });
        assert.deepEqual(ask(`bytes=${start}-${end - 1}`, total), { start, end });
      }),
    );
  });

  for (const header of [
    undefined,
    'bytes */5',
    'bytes 0-4/*',
    'bytes 4-0/5',
    'bytes 0-5/5',
    'bytes 0-4',
    'items 0-4/5',
  ]) {
    test(`Content-Range ${header ?? 'none'} proves nothing`, () =>
      assert.equal(parseContentRange(header), undefined));
  }
});
