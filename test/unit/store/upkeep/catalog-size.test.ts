import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { bytesSoon, sharesOf } from '../../../../src/store/upkeep/catalog-size.ts';

const MiB = 1024 * 1024;

describe('limit of the catalog beside the cap', () => {
  test('5 % of the cap, at least 32 MiB', () => {
    assert.equal(sharesOf({ maxBytes: 60e6 }).all, 32 * MiB);
    assert.equal(sharesOf({ maxBytes: 100e9 }).all, 5e9);
  });

  test('a quarter of it for the log, an eighth for lists, at most 64 MiB', () => {
    assert.deepEqual(sharesOf({ maxBytes: 60e6 }), { all: 32 * MiB, log: 8 * MiB, lists: 4 * MiB });
    assert.equal(sharesOf({ maxBytes: 100e9 }).lists, 64 * MiB);
  });

  test('a catalog at its limit, its log and both backups fit', () => {
    const { all, log } = sharesOf({ maxBytes: 60e6 });
    assert.ok(bytesSoon({ catalog: all / 4, log, backup: all / 4, newBackup: 0 }) <= all);
  });
});

describe('expected size of the catalog’s files', () => {
  test('the next backup counts before it is made', () => {
    assert.equal(bytesSoon({ catalog: 50, log: 9 * MiB, backup: 40, newBackup: 0 }), 9 * MiB + 140);
    assert.equal(bytesSoon({ catalog: 50, log: 9 * MiB, backup: 40, newBackup: 60 }), 9 * MiB + 150);
  });

  test('a log that was just truncated counts with its usual size', () => {
    assert.equal(bytesSoon({ catalog: 0, log: 0, backup: 0, newBackup: 0 }), 8 * MiB);
  });
});
