import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatSize, parseDuration, parseSize } from '../../../src/util/units.ts';

test('durations', () => {
  const good = {
    '90s': 90_000,
    '5m': 300_000,
    '30d': 2_592_000_000,
    '1.5h': 5_400_000,
    '250ms': 250,
    '100': 100,
    '0': 0,
  };
  for (const [text, value] of Object.entries(good)) assert.equal(parseDuration(text), value, text);
  assert.equal(parseDuration(0), 0);
  for (const bad of ['', '5 minutes', '-5m', 'm', -1, NaN, Infinity, null, undefined]) {
    assert.equal(parseDuration(bad), undefined, String(bad));
  }
});

test('sizes: 1000-based without the i, 1024-based with it', () => {
  const good = {
    '512MB': 512e6,
    '50GB': 50e9,
    '1GiB': 2 ** 30,
    '1.5MiB': 1.5 * 2 ** 20,
    '8B': 8,
    '1kB': 1000,
    '100': 100,
  };
  for (const [text, value] of Object.entries(good)) assert.equal(parseSize(text), value, text);
  for (const bad of ['', '5 apples', '-5MB', 'MB', '5mb', 1.5, -1, NaN, null]) {
    assert.equal(parseSize(bad), undefined, String(bad));
  }
});

test('sizes for people', () => {
  assert.equal(formatSize(0), '0 B');
  assert.equal(formatSize(1500), '1.5 kB');
  assert.equal(formatSize(2e9), '2.0 GB');
  assert.equal(formatSize(5e15), '5000.0 TB');
});
