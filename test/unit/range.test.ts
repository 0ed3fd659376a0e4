import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { parseContentRange, parseWant, resolveWant, type ByteRange } from '../../src/oci/range.ts';

/** What a header asks of content of a size. */
function ask(header: string | undefined, size: number): ByteRange | string {
  const want = parseWant(header);
  return typeof want === 'string' ? want : (resolveWant(want, size) ?? 'unsatisfiable');
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
