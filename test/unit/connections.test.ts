import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Connections, Pool, type Claimant } from '../../src/mirror/connections.ts';

const never = new AbortController().signal;
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

class Fill implements Claimant {
  readonly name: string;
  readonly base: number;
  yielded = 0;
  readonly #held: (() => void)[] = [];
  readonly #connections: Connections;
  readonly #pool: Pool;

  constructor(name: string, connections: Connections, pool: Pool, base = 0) {
    this.name = name;
    this.base = base;
    this.#connections = connections;
    this.#pool = pool;
  }

  get held(): number {
    return this.#held.length;
  }

  get rank(): number {
    return this.base + this.#held.length;
  }

  yield(): boolean {
    this.yielded += 1;
    setImmediate(() => this.give());
    return true;
  }

  async take(signal = never): Promise<void> {
    this.#held.push(await this.#connections.take(this, this.#pool, signal));
  }

  give(): void {
    this.#held.pop()?.();
  }
}

describe('connections', () => {
  test('who has fewest goes first, among equals in the order of asking, within both caps', async () => {
    const connections = new Connections(3);
    const [hub, other] = [new Pool(2), new Pool(2)];
    const [a, b, c] = [
      new Fill('a', connections, hub),
      new Fill('b', connections, hub),
      new Fill('c', connections, other),
    ];
    await a.take();
    await b.take();
    void a.take();
    void b.take();
    await c.take();
    void c.take();
    await turn();
    assert.deepEqual([a.held, b.held, c.held], [1, 1, 1]);
    a.give();
    await turn();
    assert.deepEqual([a.held, b.held, c.held], [1, 1, 1], 'a has none left and asked');
    c.give();
    await turn();
    assert.deepEqual([a.held, b.held, c.held], [1, 1, 1], 'the cap of the other pool leaves it to c');
    assert.equal(hub.used + other.used, 3);
  });

  test('who has none does not wait for another’s fourth, nor for what nobody waits for', async () => {
    const connections = new Connections(4);
    const pool = new Pool(4);
    const large = new Fill('large', connections, pool);
    for (let i = 0; i < 4; i++) await large.take();
    const small = new Fill('small', connections, pool);
    await small.take();
    assert.deepEqual([large.held, small.held, large.yielded], [3, 1, 1]);
    small.give();
    const ahead = new Fill('ahead', connections, pool, 1000);
    await ahead.take();
    const waited = new Fill('waited', connections, pool);
    await waited.take();
    assert.deepEqual([large.held, ahead.held, waited.held], [3, 0, 1], 'what nobody waits for goes first');
  });

  test('equals do not take from each other, and who gives up leaves the line', async () => {
    const connections = new Connections(1);
    const pool = new Pool(1);
    const [a, b, c] = ['a', 'b', 'c'].map((name) => new Fill(name, connections, pool));
    await a!.take();
    const leaving = new AbortController();
    const left = assert.rejects(b!.take(leaving.signal), /gave up/);
    void c!.take();
    leaving.abort(new Error('gave up'));
    await left;
    assert.equal(a!.yielded, 0);
    a!.give();
    await turn();
    assert.deepEqual([a!.held, b!.held, c!.held], [0, 0, 1]);
    c!.give();
    assert.equal(pool.used, 0);
  });
});
