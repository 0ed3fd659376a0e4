import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';
import { Gate, type GateFault, type Outcome } from '../../src/upstream/gate.ts';
import { isFault } from '../../src/util/errors.ts';
import { TestClock } from '../support/mirror.ts';

describe('the gate of a host', () => {
  let clock: TestClock;
  let gate: Gate;
  let changes: (GateFault | undefined)[];

  beforeEach(() => {
    clock = new TestClock();
    changes = [];
    gate = new Gate('cdn.example', clock, (_host, fault) => changes.push(fault));
  });

  async function call(outcome: Outcome, insists = false): Promise<void> {
    const pass = await gate.enter('GET x', insists);
    clock.advance(1);
    pass(outcome);
  }

  const limited = (retryAfterMs?: number): Outcome => ({ limited: true, retryAfterMs });
  const refused = (fault: GateFault) => (error: unknown) => isFault(error, fault) && error.refused;

  async function assertShutFor(ms: number, fault: GateFault): Promise<void> {
    await assert.rejects(gate.enter('GET x', false), refused(fault));
    clock.advance(ms - 5);
    await assert.rejects(gate.enter('GET x', false), refused(fault));
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
    assert.equal(gate.fault, undefined);
    assert.deepEqual(changes, ['upstream-down', undefined]);
  });

  test('silence shuts it at once, unless another call was answered meanwhile', async () => {
    const slow = await gate.enter('GET slow', false);
    clock.advance(10);
    await call('answered');
    slow('silent');
    assert.equal(gate.fault, undefined);
    clock.advance(10);
    await call('silent');
    await assertShutFor(500, 'upstream-timeout');
  });

  test('one probe at a time; the others wait for it, though not for long', async () => {
    await call('silent');
    clock.advance(500);
    const probe = await gate.enter('GET probe', false);
    const others = [gate.enter('GET a', false), gate.enter('GET b', false)];
    probe('answered');
    for (const pass of await Promise.all(others)) pass('answered');
    await call('silent');
    clock.advance(500);
    const silent = await gate.enter('GET probe', false);
    const started = performance.now();
    await assert.rejects(gate.enter('GET c', false), refused('upstream-timeout'));
    assert.ok(performance.now() - started >= 400);
    await assert.rejects(gate.enter('GET d', false), refused('upstream-timeout'));
    assert.ok(performance.now() - started < 2000);
    silent('unknown');
    // A probe that was given up leaves its place to the next.
    await call('answered');
    assert.equal(gate.fault, undefined);
  });

  test('calls that began before it shut do not shut it for longer', async () => {
    const together = await Promise.all(Array.from({ length: 20 }, () => gate.enter('GET x', false)));
    for (const pass of together) pass('failed');
    await assertShutFor(500, 'upstream-down');
    const refusedTogether = [];
    await call('answered');
    for (let i = 0; i < 20; i++) refusedTogether.push(await gate.enter('GET x', false));
    for (const pass of refusedTogether) pass(limited());
    clock.advance(1300);
    await call('answered');
  });

  test('a limit stops everybody; without Retry-After it doubles up to a minute', async () => {
    await call(limited(30_000));
    await assert.rejects(gate.enter('GET x', true), refused('upstream-limited'));
    await assertShutFor(30_000, 'upstream-limited');
    await call('answered');
    await call(limited());
    let least = 1000;
    for (let i = 0; i < 9; i++) {
      await assert.rejects(gate.enter('GET x', false), (error: unknown) => {
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
    await assert.rejects(gate.enter('GET x', false), refused('upstream-timeout'));
    await call('answered', true);
    assert.equal(gate.fault, undefined);
  });
});
