import fc from 'fast-check';
import assert from 'node:assert/strict';
import { mkdtemp, open, readdir, rm, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { describe, test } from 'node:test';
import { pino } from 'pino';
import { blobMediaType } from '../../../../src/oci/content.ts';
import { BlobStore } from '../../../../src/store/blob-store.ts';
import type { Ingest } from '../../../../src/store/ingest/ingest.ts';
import { Intervals } from '../../../../src/store/ingest/intervals.ts';
import { withoutHoles } from '../../../../src/store/ingest/journal.ts';
import { isFault, MirrorError } from '../../../../src/util/errors.ts';
import { Outlet } from '../../../../src/util/outlet.ts';
import { sameBytes } from '../../../support/http.ts';
import { largeBlob, randomBlob } from '../../../support/images.ts';
import { TestClock, until } from '../../../support/mirror.ts';

const KiB = 1024;
const drained = new MirrorError('draining', 'stopped');

/** Bytes received by a reader, and how its copy ended. */
class Sink extends Writable {
  readonly chunks: Buffer[] = [];

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.chunks.push(Buffer.from(chunk));
    setImmediate(done);
  }

  get bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

type Step =
  | { readonly do: 'write'; readonly start: number; readonly length: number }
  | { readonly do: 'read'; readonly start: number; readonly length: number }
  | { readonly do: 'cut' }
  | { readonly do: 'leave' }
  | { readonly do: 'restart' };

/** A store on disk that can be closed and opened, with one ingest and its readers, beside a model of what must be there. */
class Model {
  readonly directory: string;
  readonly blob = randomBlob(300 * KiB);
  readonly present = new Set<number>();
  readonly readers: {
    sink: Sink;
    start: number;
    end: number;
    ended: Promise<number>;
    /** Bytes of an earlier process, at which range readers stop. */
    unproven: Intervals;
    release: () => void;
  }[] = [];
  #store: BlobStore | undefined;
  #ingest: Ingest | undefined;

  constructor(directory: string) {
    this.directory = directory;
  }

  get store(): BlobStore {
    return this.#store!;
  }

  get ingest(): Ingest {
    return this.#ingest!;
  }

  async start(): Promise<void> {
    this.#store = await BlobStore.open(
      {
        path: this.directory,
        limits: () => ({
          maxBytes: Infinity,
          minFreeBytes: 0,
          maxIdleMs: 0,
          pins: [],
          scrubEveryMs: 0,
        }),
      },
      {
        clock: new TestClock(),
        log: pino({ level: 'silent' }),
        onEvicted: () => undefined,
        onPruned: () => undefined,
        onDamaged: () => undefined,
        onTagChanged: () => undefined,
      },
    );
    await this.begin();
  }

  async begin(): Promise<void> {
    this.#ingest = this.store.ingest('docker.io', this.blob.digest);
    await this.ingest.reopen();
    await this.ingest.begin(this.blob.bytes.length, this.blob.bytes.length);
    this.#check();
  }

  async write(start: number, length: number): Promise<void> {
    const end = Math.min(start + length, this.blob.bytes.length);
    await this.ingest.write(start, [this.blob.bytes.subarray(start, end)]);
    for (let at = start; at < end; at++) this.present.add(at);
    this.#check();
  }

  read(start: number, length: number): void {
    const end = Math.min(start + length, this.blob.bytes.length);
    const lease = this.ingest.lease({ start, end });
    const sink = new Sink();
    const ended = lease.copy(new Outlet(sink), { start, end });
    ended.catch(() => undefined);
    const unproven = new Intervals(this.ingest.unproven.ranges);
    this.readers.push({ sink, start, end, ended, unproven, release: () => lease.release() });
  }

  /** The fill fails: its readers get the fault, and its bytes stay if there are enough. */
  async cut(error = drained): Promise<void> {
    await this.ingest.fail(error);
    if (this.present.size < 64 * KiB) this.present.clear();
    await this.settle();
  }

  async settle(): Promise<void> {
    for (const { sink, start, end, ended, unproven, release } of this.readers.splice(0)) {
      const at = await ended.catch((error: unknown) => error);
      sameBytes(sink.bytes, this.blob.bytes.subarray(start, start + sink.bytes.length));
      if (typeof at === 'number') {
        assert.equal(sink.bytes.length, at - start);
        assert.ok(at === end || unproven.endOfRun(at) > at, `stopped at ${at}`);
      } else assert.equal(at, drained);
      release();
    }
  }

  async close(): Promise<void> {
    await this.store.close();
  }

  #check(): void {
    assert.equal(this.ingest.present.total, this.present.size);
    for (const { start, end } of this.ingest.present.ranges)
      for (const at of [start, (start + end) >> 1, end - 1]) assert.ok(this.present.has(at));
  }
}

async function inDirectory<T>(work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), 'layercache-test-'));
  try {
    return await work(directory);
  } finally {
    await rm(directory, { recursive: true });
  }
}

describe('ingest', () => {
  const place = { start: fc.nat({ max: 299 * KiB }), length: fc.integer({ min: 1, max: 120 * KiB }) };
  const step: fc.Arbitrary<Step> = fc.oneof(
    { weight: 6, arbitrary: fc.record({ do: fc.constant('write'), ...place }) },
    { weight: 3, arbitrary: fc.record({ do: fc.constant('read'), ...place }) },
    { weight: 1, arbitrary: fc.constant({ do: 'cut' } as const) },
    { weight: 1, arbitrary: fc.constant({ do: 'leave' } as const) },
    { weight: 1, arbitrary: fc.constant({ do: 'restart' } as const) },
  );

  test('for any sequence of writes, failures and restarts, readers get correct bytes and only present bytes count as present', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 25 }), (steps) =>
        inDirectory(async (directory) => {
          const model = new Model(directory);
          await model.start();
          for (const each of steps) {
            if (each.do === 'write') await model.write(each.start, each.length);
            else if (each.do === 'read') model.read(each.start, each.length);
            else if (each.do === 'leave') model.readers.at(-1)?.sink.destroy();
            else {
              await model.cut();
              if (each.do === 'restart') {
                await model.close();
                await model.start();
              } else await model.begin();
            }
            // Readers that left are not awaited.
            for (const reader of model.readers.filter(({ sink }) => sink.destroyed)) {
              const ended = await reader.ended.catch((error: unknown) => error);
              assert.ok(typeof ended === 'number' || isFault(ended, 'client-gone'));
              reader.release();
              model.readers.splice(model.readers.indexOf(reader), 1);
            }
          }
          await model.write(0, 300 * KiB);
          await model.ingest.verify();
          await model.settle();
          await model.store.commit(model.ingest, blobMediaType);
          const content = model.store.open(model.blob.digest)!;
          await content.prepare();
          const sink = new Sink();
          await content.copyTo(sink);
          content.release();
          sameBytes(sink.bytes, model.blob.bytes);
          await model.close();
          assert.deepEqual(await readdir(join(directory, 'ingest')), []);
        }),
      ),
      { numRuns: 40 },
    );
  });

  test('a reader of the whole blob gets the last byte only once the digest is verified', async () => {
    await inDirectory(async (directory) => {
      const model = new Model(directory);
      await model.start();
      model.read(0, 300 * KiB);
      model.read(1, 300 * KiB);
      const [whole, part] = model.readers;
      await model.write(0, 300 * KiB);
      await part!.ended;
      await until(() => whole!.sink.bytes.length === 300 * KiB - 1, 'it has all but the last byte');
      await new Promise((resolve) => setImmediate(resolve));
      assert.equal(whole!.sink.bytes.length, 300 * KiB - 1);
      await model.ingest.verify();
      await model.settle();
      await model.ingest.suspend();
      await model.close();
    });
  });

  test('without a known size no partial is left: excess bytes could not be detected later', async () => {
    await inDirectory(async (directory) => {
      const model = new Model(directory);
      await model.start();
      await model.ingest.suspend();
      const unknown = model.store.ingest('docker.io', randomBlob(1).digest);
      await unknown.begin(undefined, undefined);
      await unknown.write(0, [model.blob.bytes]);
      await unknown.suspend();
      assert.equal(model.store.hasPartial('docker.io', unknown.digest), false);
      assert.deepEqual(await readdir(join(directory, 'ingest')), []);
      await model.close();
    });
  });

  test('unsynced bytes that read as zeros or lie past the end do not count', async () => {
    await inDirectory(async (directory) => {
      const path = join(directory, 'file');
      const { bytes } = largeBlob(64 * KiB);
      const file = await open(path, 'w+');
      await file.write(bytes, 0, 20 * KiB, 0);
      await file.write(bytes, 0, 8 * KiB, 32 * KiB);
      await truncate(path, 60 * KiB);
      const claimed = new Intervals([{ start: 0, end: 64 * KiB }]);
      const found = await withoutHoles(file, claimed, new Intervals());
      assert.deepEqual(found.ranges, [{ start: 0, end: 20 * KiB }]);
      const synced = new Intervals([{ start: 32 * KiB, end: 40 * KiB }]);
      assert.deepEqual((await withoutHoles(file, claimed, synced)).ranges, [
        { start: 0, end: 20 * KiB },
        { start: 32 * KiB, end: 40 * KiB },
      ]);
      await truncate(path, 0);
      assert.deepEqual((await withoutHoles(file, claimed, new Intervals())).ranges, []);
      await file.close();
    });
  });
});
