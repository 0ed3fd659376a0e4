import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Connections, Pool, type Claimant } from '../../../../src/mirror/fill/connections.ts';

const never = new AbortController().signal;
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

class Fill implements Claimant {
  readonly name: string;
  readonly base: number;
  yielded = 0;
  isSlow = false;
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
  test('who brings hardly anything gives way to who has none, though its registry has no more than others', async () => {
    const connections = new Connections(() => 2);
    const slow = [1, 2].map((i) => new Fill(`slow ${i}`, connections, new Pool(2)));
    for (const each of slow) await each.take();
    const well = new Fill('well', connections, new Pool(2));
    void well.take();
    await turn();
    assert.equal(well.held, 0, 'of equals nobody gives way');
    slow[1]!.isSlow = true;
    connections.rankChanged(well);
    await turn();
    await turn();
    assert.deepEqual([well.held, slow[0]!.yielded, slow[1]!.yielded], [1, 0, 1]);
  });

  test('who has fewest goes first, among equals in the order of asking, within both caps', async () => {
    const connections = new Connections(() => 3);
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
    const connections = new Connections(() => 4);
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
    const connections = new Connections(() => 1);
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

  /** A fill that wants up to four, and asks again for what it has yielded. */
  class Greedy implements Claimant {
    held: (() => void)[] = [];
    yielded = 0;
    readonly isSlow = false;
    #wanted = 0;
    readonly #connections: Connections;
    readonly #pool: Pool;

    constructor(connections: Connections, pool: Pool) {
      this.#connections = connections;
      this.#pool = pool;
    }

    get rank(): number {
      return this.held.length;
    }

    yield(): boolean {
      const give = this.held.pop();
      if (!give) return false;
      this.yielded += 1;
      setImmediate(() => {
        give();
        this.proceed();
      });
      return true;
    }

    proceed(): void {
      while (this.held.length + this.#wanted < 4) {
        this.#wanted += 1;
        void this.#connections.take(this, this.#pool, never).then((give) => {
          this.#wanted -= 1;
          this.held.push(give);
        });
      }
    }
  }

  async function quiet(fills: Greedy[]): Promise<number> {
    let last = -1;
    let count = 0;
    for (let turns = 0; turns < 2000 && last !== count; turns++) {
      last = count;
      for (let i = 0; i < 5; i++) await turn();
      count = fills.reduce((sum, { yielded }) => sum + yielded, 0);
    }
    assert.equal(last, count, 'they come to rest');
    return count;
  }

  test('registries that want more than there is come to rest', async () => {
    for (const [caps, each] of [
      [[32, 32], 40],
      [[32, 32], 33],
      [[32, 32, 32], 24],
      [[4, 60], 70],
    ] as const) {
      const connections = new Connections(() => 64);
      const fills = caps.flatMap((cap) => {
        const pool = new Pool(cap);
        return Array.from({ length: each }, () => new Greedy(connections, pool));
      });
      for (const fill of fills) {
        fill.proceed();
        await turn();
      }
      const yielded = await quiet(fills);
      assert.ok(yielded < 1000, `${yielded}`);
      assert.equal(
        fills.reduce((sum, { held }) => sum + held.length, 0),
        Math.min(
          64,
          caps.reduce((a, b) => a + b, 0),
        ),
      );
    }
  });

  test('who comes late to full connections gets its share of them', async () => {
    const connections = new Connections(() => 64);
    const fills: Greedy[] = [];
    for (let registry = 0; registry < 2; registry++) {
      const pool = new Pool(32);
      for (let i = 0; i < 40; i++) fills.push(new Greedy(connections, pool));
    }
    for (const fill of fills) fill.proceed();
    await quiet(fills);
    const late = new Greedy(connections, new Pool(32));
    late.proceed();
    await quiet([...fills, late]);
    assert.ok(late.held.length >= 1);
  });

  test('registries under one pattern have as many as one together', async () => {
    const connections = new Connections(() => 64);
    const family = new Pool(8);
    const fills = Array.from({ length: 20 }, () => new Greedy(connections, new Pool(8, family)));
    for (const fill of fills) fill.proceed();
    await quiet(fills);
    assert.equal(family.used, 8);
    const other = new Greedy(connections, new Pool(32));
    other.proceed();
    await turn();
    assert.equal(other.held.length, 4);
  });
});
