import fc from 'fast-check';
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Digest } from '../../../../src/oci/digest.ts';
import { footprint } from '../../../../src/store/catalog/tables/blobs.ts';
import type { Victim } from '../../../../src/store/catalog/tables/uses.ts';
import type { FreeSpace } from '../../../../src/store/disk/files.ts';
import { Evictor } from '../../../../src/store/room/evictor.ts';
import type { Reservation } from '../../../../src/store/room/reservation.ts';
import { Space } from '../../../../src/store/room/space.ts';
import { isFault } from '../../../../src/util/errors.ts';

/** A store of names and sizes on a disk of a given size. */
class Disk {
  readonly blobs = new Map<string, { size: number; priority: number; leased: boolean }>();
  readonly evictor: Evictor;
  readonly #space = new Space(0);
  readonly #capacity: number;
  /** Bytes written by running fills. */
  written = 0;
  now = 0;
  /** The file system answers once this is resolved. */
  slow: Promise<unknown> = Promise.resolve();

  constructor(maxBytes: number, minFreeBytes = 0, capacity = Infinity) {
    this.#capacity = capacity;
    const victims = {
      lowestPriority: (count: number, after: Victim | undefined) => this.#order(after).slice(0, count),
      idle: () => [],
      isEvictable: (digest: Digest) => this.blobs.get(digest)?.leased === false,
      pinnedBytes: 0,
      evict: async ({ digest, size }: Victim) => {
        await Promise.resolve();
        this.blobs.delete(digest);
        this.#space.removed(size);
        return true;
      },
    };
    const free = async (): Promise<FreeSpace> => {
      await this.slow;
      return { bytes: this.free, files: Infinity };
    };
    const parts = { space: this.#space, victims, droppable: [], free };
    this.evictor = new Evictor(() => ({ maxBytes, minFreeBytes, maxIdleMs: 0 }), parts);
  }

  get bytes(): number {
    return this.#space.bytes;
  }

  get stored(): number {
    return [...this.blobs.values()].reduce((sum, { size }) => sum + footprint(size), 0);
  }

  get free(): number {
    return this.#capacity - this.stored - this.written;
  }

  async add(name: string, size: number): Promise<void> {
    const reservation = this.evictor.reservation();
    await reservation.growTo(size);
    this.keep(reservation, name, size);
  }

  keep(reservation: Reservation, name: string, size: number): void {
    reservation.commit(size);
    this.blobs.set(name, { size, priority: this.now++, leased: false });
  }

  #order(after: Victim | undefined): Victim[] {
    return [...this.blobs]
      .map(([name, { size, priority }]) => ({ digest: name as Digest, size, priority }))
      .filter(({ priority }) => priority > (after?.priority ?? -1))
      .sort((a, b) => a.priority - b.priority);
  }
}

const block = 4096;

describe('evictor', () => {
  test('evicts the lowest priority first, and no more than needed', async () => {
    const disk = new Disk(3 * block);
    for (const name of ['a', 'b', 'c']) await disk.add(name, block);
    disk.blobs.get('a')!.priority = disk.now++;
    await disk.add('d', block);
    assert.deepEqual([...disk.blobs.keys()], ['a', 'c', 'd']);
  });

  test('skips leased blobs, and refuses when no other is left', async () => {
    const disk = new Disk(2 * block);
    await disk.add('a', block);
    await disk.add('b', block);
    disk.blobs.get('a')!.leased = true;
    await disk.add('c', block);
    assert.deepEqual([...disk.blobs.keys()], ['a', 'c']);
    disk.blobs.get('c')!.leased = true;
    await assert.rejects(disk.add('d', block), (error) => isFault(error, 'store-full'));
    disk.blobs.get('c')!.leased = false;
    await disk.add('d', block);
    assert.deepEqual([...disk.blobs.keys()], ['a', 'd']);
  });

  test('evicts nothing for a blob that would not fit anyway', async () => {
    const disk = new Disk(10 * block, 5 * block, 12 * block);
    await disk.add('a', block);
    for (const size of [11 * block, 8 * block]) {
      await assert.rejects(disk.add('b', size), (error) => isFault(error, 'store-full'));
    }
    assert.deepEqual([...disk.blobs.keys()], ['a']);
  });

  test('reservations count as used', async () => {
    const disk = new Disk(4 * block);
    const first = disk.evictor.reservation();
    await first.growTo(3 * block);
    const second = disk.evictor.reservation();
    await assert.rejects(second.growTo(2 * block), (error) => isFault(error, 'store-full'));
    first.release();
    await second.growTo(2 * block);
    assert.equal(disk.bytes, 2 * block);
  });

  test('an aborted request gets no space, then or later', async () => {
    const disk = new Disk(10 * block);
    const { promise, resolve } = Promise.withResolvers<undefined>();
    disk.slow = promise;
    const waiting = new AbortController();
    const late = disk.evictor.reservation();
    const grown = late.growTo(block, waiting.signal);
    waiting.abort();
    await assert.rejects(grown, (error) => isFault(error, 'store-full'));
    resolve(undefined);
    await disk.add('a', block);
    assert.equal(late.bytes, 0);
    assert.equal(disk.bytes, block);
  });

  test('cap and free space are respected at every moment, in any order of operations', async () => {
    const action = fc.record({
      kind: fc.constantFrom('begin', 'write', 'keep', 'drop', 'lease'),
      size: fc.integer({ min: 1, max: 6 * block }),
      pick: fc.nat(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(action, { maxLength: 60 }), async (actions) => {
        const [maxBytes, minFree, capacity] = [10 * block, 2 * block, 11 * block];
        const disk = new Disk(maxBytes, minFree, capacity);
        const fills: { reservation: Reservation; size: number; written: number }[] = [];
        const check = (): void => {
          const written = fills.reduce((sum, fill) => sum + footprint(fill.written), 0);
          assert.equal(disk.written, written);
          assert.ok(disk.stored + written <= disk.bytes, 'everything on disk is counted');
          assert.ok(disk.bytes <= maxBytes, 'the cap holds');
          assert.ok(disk.free >= minFree, 'free space holds');
        };
        for (const { kind, size, pick } of actions) {
          const fill = fills[pick % Math.max(1, fills.length)];
          if (kind === 'begin') {
            const reservation = disk.evictor.reservation();
            try {
              await reservation.growTo(size);
              fills.push({ reservation, size, written: 0 });
            } catch (error) {
              assert.ok(isFault(error, 'store-full'));
              reservation.release();
            }
          } else if (kind === 'lease') {
            const blob = [...disk.blobs.values()][pick % Math.max(1, disk.blobs.size)];
            if (blob) blob.leased = !blob.leased;
          } else if (fill) {
            disk.written -= footprint(fill.written);
            if (kind === 'write') {
              const more = Math.min(fill.size - fill.written, 1 + (pick % block));
              fill.written += more;
              fill.reservation.wrote(more);
              disk.written += footprint(fill.written);
            } else {
              fills.splice(fills.indexOf(fill), 1);
              if (kind === 'keep') disk.keep(fill.reservation, `blob ${disk.now}`, fill.size);
              else fill.reservation.release();
            }
          }
          check();
        }
      }),
    );
  });
});
