import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseRetryAfter } from '../../../../src/upstream/http/headers.ts';

const now = Date.parse('2026-01-01T00:00:00Z');
const cases: [header: string | undefined, ms: number | undefined][] = [
  [undefined, undefined],
  ['30', 30_000],
  ['0', 1000],
  ['999999999', 3_600_000],
  [new Date(now + 90_000).toUTCString(), 90_000],
  [new Date(now - 90_000).toUTCString(), 1000],
  [String(now / 1000 + 120), 120_000],
  ['880.092µs', undefined],
  ['abc', undefined],
];
for (const [header, ms] of cases) {
  test(`Retry-After ${header ?? 'absent'}`, () => assert.equal(parseRetryAfter(header, now), ms));
}
