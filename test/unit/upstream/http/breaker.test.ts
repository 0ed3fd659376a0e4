import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';
import { Breaker, type BreakerFault, type Outcome } from '../../../../src/upstream/http/breaker.ts';
import { isFault } from '../../../../src/util/errors.ts';
import { TestClock } from '../../../support/mirror.ts';

describe('the breaker of a host', () => {
  let clock: TestClock;
  let breaker: Breaker;
  let changes: (BreakerFault | undefined)[];

  beforeEach(() => {
    clock = new TestClock();
    changes = [];
    breaker = new Breaker('cdn.example', clock, (_host, fault) => changes.push(fault));
  });

  let asked = 0;
  async function call(outcome: Outcome, insists = false, what = `GET ${asked++}`): Promise<void> {
    const pass = await breaker.admit(what, insists);
    clock.advance(1);
    pass(outcome);
  }

  const limited = (retryAfterMs?: number): Outcome => ({ retryAfterMs });
  const refused = (fault: BreakerFault) => (error: unknown) => isFault(error, fault) && error.notAsked;

  async function assertShutFor(ms: number, fault: BreakerFault): Promise<void> {
    await assert.rejects(breaker.admit('GET x', false), refused(fault));
    clock.advance(ms - 5);
    await assert.rejects(breaker.admit('GET x', false), refused(fault));
    clock.advance(5);
  }

  test('five failures one after the other shut it, for longer each time', async () => {
    for (let i = 0; i < 4; i++) await call('failed');
    await call('answered');
    for (let i = 0; i < 5; i++) await call('failed');
    for (const hold of [500, 1000, 2000, 4000, 5000, 5000]) {
      await assertShutFor(hold, 'upstream-down');
      await call('failed');
    }
    clock.advance(5000);
    await call('answered');
    assert.equal(breaker.isOpen, false);
    assert.deepEqual(changes, ['upstream-down', undefined]);
  });

  test('silence shuts it at once, unless another call was answered meanwhile', async () => {
    const slow = await breaker.admit('GET slow', false);
    clock.advance(10);
    await call('answered');
    slow('silent');
    assert.equal(breaker.isOpen, false);
    clock.advance(10);
    await call('silent');
    await assertShutFor(500, 'upstream-timeout');
  });

  test('one thing that is answered with 5xx again and again shuts nobody out', async () => {
    for (let i = 0; i < 20; i++) await call('server-error', false, 'GET bad');
    assert.equal(breaker.isOpen, false);
    for (let i = 0; i < 4; i++) await call('server-error');
    assert.equal(breaker.isOpen, true);
    // Once it is shut, what has probed in vain lets others go first.
    for (let i = 0; i < 3; i++) {
      clock.advance(5000);
      await call('server-error', false, 'GET bad');
    }
    clock.advance(4000);
    await assert.rejects(breaker.admit('GET bad', false), refused('upstream-down'));
    await call('answered');
    assert.equal(breaker.isOpen, false);
  });

  test('a deadline that passes is silence only if the call had its time', async () => {
    for (let i = 0; i < 20; i++) {
      const pass = await breaker.admit('GET x', false);
      clock.advance(150);
      pass('answered');
    }
    const short = await breaker.admit('GET x', false);
    clock.advance(100);
    short('late');
    assert.equal(breaker.isOpen, false);
    const long = await breaker.admit('GET x', false);
    clock.advance(2000);
    long('late');
    assert.equal(breaker.isOpen, true);
  });

  test('what has changed meanwhile is not undone by an old probe, and a limit counts once', async () => {
    await call('silent');
    clock.advance(500);
    const probe = await breaker.admit('GET probe', false);
    await call('answered', true);
    probe('silent');
    assert.equal(breaker.isOpen, false);
    await call('silent');
    clock.advance(500);
    const old = await breaker.admit('GET probe', false);
    const spans = await Promise.all(Array.from({ length: 16 }, () => breaker.admit('GET span', true)));
    for (const pass of spans) pass(limited());
    old('answered');
    await assert.rejects(breaker.admit('GET x', true), refused('upstream-limited'));
    clock.advance(1300);
    await call('answered');
    assert.equal(breaker.isOpen, false);
  });

  test('a probe that is stuck gives its place to the next', async () => {
    await call('silent');
    clock.advance(500);
    await breaker.admit('GET stuck', false);
    clock.advance(5000);
    await call('answered');
    assert.equal(breaker.isOpen, false);
  });

  test('one probe at a time; the others wait for it, though not for long', async () => {
    await call('silent');
    clock.advance(500);
    const probe = await breaker.admit('GET probe', false);
    const others = [breaker.admit('GET a', false), breaker.admit('GET b', false)];
    probe('answered');
    for (const pass of await Promise.all(others)) pass('answered');
    await call('silent');
    clock.advance(500);
    const silent = await breaker.admit('GET probe', false);
    const started = performance.now();
    await assert.rejects(breaker.admit('GET c', false), refused('upstream-timeout'));
    assert.ok(performance.now() - started >= 400);
    await assert.rejects(breaker.admit('GET d', false), refused('upstream-timeout'));
    assert.ok(performance.now() - started < 2000);
    silent('unknown');
    // A probe that was given up leaves its place to the next.
    await call('answered');
    assert.equal(breaker.isOpen, false);
  });

  test('calls that began before it shut do not shut it for longer', async () => {
    const together = await Promise.all(Array.from({ length: 20 }, () => breaker.admit('GET x', false)));
    for (const pass of together) pass('failed');
    await assertShutFor(500, 'upstream-down');
    const refusedTogether = [];
    await call('answered');
    for (let i = 0; i < 20; i++) refusedTogether.push(await breaker.admit('GET x', false));
    for (const pass of refusedTogether) pass(limited());
    clock.advance(1300);
    await call('answered');
  });

  test('a limit stops everybody; without Retry-After it doubles up to a minute', async () => {
    await call(limited(30_000));
    await assert.rejects(breaker.admit('GET x', true), refused('upstream-limited'));
    await assertShutFor(30_000, 'upstream-limited');
    await call('answered');
    await call(limited());
    let least = 1000;
    for (let i = 0; i < 9; i++) {
      await assert.rejects(breaker.admit('GET x', false), (error: unknown) => {
        assert.ok(isFault(error, 'upstream-limited'));
        const wait = error.retryAfterMs ?? 0;
        assert.ok(wait >= Math.min(least, 60_000) - 1 && wait <= Math.min(least, 60_000) * 1.25, `${wait}`);
        clock.advance(wait);
        return true;
      });
      await call(limited());
      least *= 2;
    }
  });

  test('a download that has begun asks on, and opens it for all when it is answered', async () => {
    await call('silent');
    await call('failed', true);
    await assert.rejects(breaker.admit('GET x', false), refused('upstream-timeout'));
    await call('answered', true);
    assert.equal(breaker.isOpen, false);
  });
});
