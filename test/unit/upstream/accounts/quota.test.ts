import fc from 'fast-check';
import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';
import { Quota } from '../../../../src/upstream/accounts/quota.ts';
import { TestClock } from '../../../support/mirror.ts';

const minute = 60_000;
const hour = 60 * minute;
const said = (remaining: number, limit = 100) => ({
  'ratelimit-limit': `${limit};w=21600`,
  'ratelimit-remaining': `${remaining};w=21600`,
});

describe('the pulls of an account', () => {
  let clock: TestClock;
  let quota: Quota;

  beforeEach(() => {
    clock = new TestClock();
    quota = new Quota(clock);
  });

  function head(remaining: number): void {
    quota.answered(quota.begin(false), 200, said(remaining), false);
  }

  test('nobody counts until the upstream says so', () => {
    assert.equal(quota.left, Infinity);
    assert.equal(quota.limit, undefined);
    quota.answered(quota.begin(true), 200, {}, false);
    assert.equal(quota.left, Infinity);
    head(7);
    assert.equal(quota.left, 7);
    assert.equal(quota.limit, 100);
  });

  test('a pull is taken off when it begins, and a late HEAD brings nothing back', () => {
    head(3);
    const late = quota.begin(false);
    const pulls = [quota.begin(true), quota.begin(true), quota.begin(true)];
    assert.equal(quota.left, 0);
    const between = quota.begin(false);
    quota.answered(late, 200, said(3), false);
    assert.equal(quota.left, 0);
    for (const [i, pull] of pulls.entries()) quota.answered(pull, 200, said(2 - i), false);
    quota.answered(between, 200, said(1), false);
    assert.equal(quota.left, 0);
    head(2);
    assert.equal(quota.left, 2);
  });

  test('what has not been sent costs nothing; what has failed may have been counted', () => {
    head(5);
    quota.unsent(quota.begin(true));
    assert.equal(quota.left, 5);
    quota.failed(quota.begin(true));
    assert.equal(quota.left, 4);
    head(5);
    assert.equal(quota.left, 5);
  });

  test('pulls that were under way before anything was known are taken off what is said first', () => {
    const [first, second, third] = [quota.begin(true), quota.begin(true), quota.begin(true)];
    quota.answered(first, 200, said(9), false);
    assert.equal(quota.left, 7);
    quota.answered(second, 200, said(8), false);
    quota.answered(third, 200, said(7), false);
    assert.equal(quota.left, 7);
  });

  test('others behind the same address spend too', () => {
    head(50);
    head(20);
    assert.equal(quota.left, 20);
  });

  test('after a refusal, figures are believed again a minute later, and later each time', () => {
    head(5);
    for (const waitMs of [minute, 2 * minute, 4 * minute]) {
      clock.advance(1);
      const pull = quota.begin(true);
      quota.answered(pull, 429, said(0), true);
      assert.equal(quota.left, 0);
      clock.advance(waitMs - 1000);
      head(5);
      assert.equal(quota.left, 0, `${waitMs}`);
      clock.advance(1000);
      head(5);
      assert.equal(quota.left, 5);
    }
    clock.advance(1);
    quota.answered(quota.begin(true), 200, said(4), false);
    clock.advance(1);
    quota.answered(quota.begin(true), 429, said(0), true);
    clock.advance(minute);
    head(5);
    assert.equal(quota.left, 5);
  });

  test('Retry-After says when they may be back, at most a window; without it the window does', () => {
    for (const [retryAfter, backInMs] of [
      ['120', 2 * minute],
      ['999999', 6 * hour],
      ['-5', 6 * hour],
      ['soon', 6 * hour],
      [new Date(new TestClock().now() + hour).toUTCString(), hour],
      [String(Math.floor((new TestClock().now() + hour) / 1000)), hour],
    ] as const) {
      const fresh = new Quota(new TestClock());
      const headers = { ...said(0), 'retry-after': retryAfter };
      fresh.answered(fresh.begin(true), 429, headers, true);
      assert.equal(fresh.backInMs, backInMs, retryAfter);
    }
  });

  test('it is looked at once a minute, and when pulls may be back', () => {
    head(0);
    assert.equal(quota.isProbeDue, false);
    clock.advance(minute);
    assert.equal(quota.isProbeDue, true);
    quota.markProbed();
    assert.equal(quota.isProbeDue, false);
    clock.advance(minute);
    assert.equal(quota.isProbeDue, true);
    head(3);
    assert.equal(quota.isProbeDue, false);
  });

  test('a window in which nobody told is over', () => {
    head(0);
    clock.advance(6 * hour);
    quota.answered(quota.begin(false), 200, {}, false);
    assert.equal(quota.left, Infinity);
    assert.equal(quota.state, undefined);
  });

  test('what is written down is known again, unless it is too old', () => {
    head(2);
    quota.begin(true);
    const { state } = quota;
    assert.equal(new Quota(clock, state).left, 1);
    clock.advance(5 * hour);
    assert.equal(new Quota(clock, state).left, 1);
    clock.advance(hour);
    assert.equal(new Quota(clock, state).left, Infinity);
    clock.advance(-24 * hour);
    assert.equal(new Quota(clock, state).left, Infinity);
  });

  test('the rate of the last minutes tells when none is left', () => {
    head(100);
    assert.equal(quota.exhaustedInMs, Infinity);
    for (let i = 0; i < 60; i++) {
      clock.advance(minute);
      quota.answered(quota.begin(true), 200, said(99 - i), false);
    }
    const minutes = quota.exhaustedInMs / minute;
    assert.ok(minutes > 36 && minutes < 44, String(minutes));
  });

  test('whatever the order of answers: never more is spent than there is', () => {
    // An upstream that counts what reaches it, with calls that reach it and come back in any order.
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 6 }),
        fc.array(fc.tuple(fc.constantFrom('head', 'pull', 'reach', 'answer'), fc.nat(20)), { maxLength: 80 }),
        (limit, steps) => {
          const each = new Quota(new TestClock());
          let counted = 0;
          let refused = 0;
          const begun: { pull: boolean; ticket: ReturnType<Quota['begin']>; left?: number }[] = [];
          each.answered(each.begin(false), 200, said(limit, 6), false);
          for (const [step, at] of steps) {
            if (step === 'head') begun.push({ pull: false, ticket: each.begin(false) });
            else if (step === 'pull') {
              if (each.left > 0) begun.push({ pull: true, ticket: each.begin(true) });
            } else if (step === 'reach') {
              const call = begun.filter(({ left }) => left === undefined).at(at % 5);
              if (!call) continue;
              if (call.pull) counted += 1;
              if (counted > limit) refused += 1;
              call.left = Math.max(0, limit - counted);
            } else {
              const call = begun.filter(({ left }) => left !== undefined).at(at % 5);
              if (!call) continue;
              begun.splice(begun.indexOf(call), 1);
              each.answered(call.ticket, 200, said(call.left ?? 0, 6), false);
            }
          }
          assert.equal(refused, 0);
        },
      ),
    );
  });
});
