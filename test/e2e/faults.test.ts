import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, readdir, readlink, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sendBlob, type BodyOptions } from '../support/bodies.ts';
import { sameBytes, type Reply } from '../support/http.ts';
import { largeBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { missing } from '../support/programs.ts';
import { Upstream, type Call, type Script } from '../support/upstream.ts';

const MiB = 1024 * 1024;
const blob = largeBlob(3 * MiB + 4321);
const path = `/v2/library/x/blobs/${blob.digest}`;
/** One connection and spans of 1 MiB: without faults three calls, the last one somewhat longer. */
const normal = 3;
const spoilt = Buffer.from(blob.bytes);
for (const at of [500_000, 1.5 * MiB, 2.5 * MiB]) spoilt[at] = (spoilt[at] ?? 0) ^ 1;

/** Which of the fill's calls is spoilt. */
const moments: Record<string, (range: string) => boolean> = {
  'the first call': (range) => range.startsWith('bytes=0-'),
  'the second call': (range) => range.startsWith(`bytes=${MiB}-`),
  'the last call': (range) => range.startsWith(`bytes=${2 * MiB}-`),
};

interface Expected {
  /** The client's request: all right, a status, or broken off. */
  readonly reply: 'right' | 'broken' | number;
  readonly calls: number;
  /** What stays of the unfinished fill, in files. */
  readonly left?: number;
}

const again: Expected = { reply: 'right', calls: normal + 1 };

/** Fault by fault what becomes of it before anything was answered, and after that. */
const table: Record<string, { script: Script; first: Expected; later: (call: number) => Expected }> = {
  'a connection that is reset': {
    script: (_call, req) => void req.socket.resetAndDestroy(),
    first: again,
    later: () => again,
  },
  'a 503': { script: status(503), first: again, later: () => again },
  'a 429': { script: status(429), first: { reply: 429, calls: 1 }, later: () => again },
  'a 404': {
    script: status(404),
    first: { reply: 404, calls: 1 },
    later: (call) => ({ reply: 'broken', calls: call, left: 1 }),
  },
  'a web page': {
    script: (_call, _req, res) => void res.writeHead(200, { 'content-type': 'text/html' }).end('<html>'),
    // It is asked once more without a range, and that is used.
    first: { reply: 'right', calls: 2 },
    later: () => again,
  },
  'silence before the headers': {
    script: () => undefined,
    first: { reply: 504, calls: 1 },
    later: () => again,
  },
  'a cut after the headers': { script: body({ cutAfter: 1 }), first: again, later: () => again },
  'a cut in the body': { script: body({ cutAfter: 400_000 }), first: again, later: () => again },
  'a cut before the last byte of a span': {
    script: body({ cutAfter: MiB - 1 }),
    // That byte comes with the next span, if there is one.
    first: { reply: 'right', calls: normal },
    later: (call) => ({ reply: 'right', calls: call === normal ? normal + 1 : normal }),
  },
  'a stall in the body': { script: body({ stallAfter: 400_000 }), first: again, later: () => again },
  'a body that ends early': {
    script: (_call, req, res) => {
      const [, first] = /^bytes=(\d+)/.exec(req.headers.range ?? '') ?? [];
      const range = `bytes ${first}-${Number(first) + 99}/${blob.bytes.length}`;
      res
        .writeHead(206, { 'content-range': range })
        .end(blob.bytes.subarray(Number(first), Number(first) + 50));
    },
    first: again,
    later: () => again,
  },
  'a wrong byte': {
    script: body({ bytes: spoilt }),
    first: { reply: 'broken', calls: normal },
    later: () => ({ reply: 'broken', calls: normal }),
  },
};

function status(code: number): Script {
  return (_call, _req, res) => void res.writeHead(code).end();
}

function body(options: BodyOptions): Script {
  return sendBlob(blob, options);
}

describe('faults at every moment of a fill', () => {
  let upstream: Upstream;
  let mirror: TestMirror;

  beforeEach(async () => {
    upstream = await Upstream.start();
    upstream.addBlob('library/x', blob);
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: {
        tags: { negativeTtl: 'off' },
        fetch: {
          spanBytes: '1MiB',
          connectionsPerBlob: 1,
          idleTimeout: '150ms',
          firstByteTimeout: '400ms',
        },
      },
    });
    mirror.clock.run();
  });

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  /** Nothing runs, nothing is open, and only what may be left is. */
  async function assertClean(left: number): Promise<void> {
    await mirror.fillsEnded();
    await until(async () => (await openFiles()).length === 0, 'all files are closed');
    assert.equal((await mirror.files('ingest')).length, left);
  }

  async function openFiles(): Promise<string[]> {
    const fds = await readdir('/proc/self/fd');
    const targets = await Promise.all(fds.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')));
    return targets.filter(
      (target) => /data\/(ingest|blobs)\//.test(target) && target.startsWith(mirror.directory),
    );
  }

  function assertReply(reply: Reply, expected: Expected['reply']): void {
    if (expected === 'broken') {
      assert.ok(reply.broken, 'broken off');
      assert.ok(reply.body.length < blob.bytes.length);
    } else if (expected === 'right') {
      assert.equal(reply.broken, false);
      sameBytes(reply.body, blob.bytes);
    } else assert.equal(reply.status, expected);
  }

  for (const [fault, { script, first, later }] of Object.entries(table)) {
    for (const [i, [moment, match]] of Object.entries(moments).entries()) {
      test(`${fault} in ${moment}`, async () => {
        const expected = i === 0 ? first : later(i + 1);
        upstream.script('blob', script, { times: 1, match: ({ headers }) => match(headers.range ?? '') });
        assertReply(await mirror.get(path), expected.reply);
        await assertClean(expected.left ?? 0);
        assert.equal(upstream.count('blob'), expected.calls);
        upstream.behave();
        // Whatever host is not asked for a while is asked again.
        mirror.clock.advance(5000);
        assertReply(await mirror.get(path), 'right');
        await until(async () => (await mirror.files('blobs')).length === 1, 'it is stored');
        await assertClean(0);
      });
    }
  }

  /** Holds the call that matches until `go`. */
  function hold(match: (range: string) => boolean): { reached: Promise<Call>; go: () => void } {
    const reached = Promise.withResolvers<Call>();
    const { promise, resolve } = Promise.withResolvers<undefined>();
    upstream.script(
      'blob',
      async (call, _req, _res, next) => {
        reached.resolve(call);
        await promise;
        next();
      },
      { times: 1, match: ({ headers }) => match(headers.range ?? '') },
    );
    return { reached: reached.promise, go: () => resolve(undefined) };
  }

  /** A client that asks, and goes away then. */
  async function leaveAfter(then: Promise<unknown>): Promise<void> {
    const leaving = new AbortController();
    const left = fetch(`${mirror.url}${path}`, { signal: leaving.signal })
      .then((response) => response.arrayBuffer())
      .catch(() => undefined);
    await then;
    leaving.abort();
    await left;
  }

  for (const [moment, match] of Object.entries(moments)) {
    test(`the client that leaves in ${moment} changes nothing`, async () => {
      const { reached, go } = hold(match);
      await leaveAfter(reached);
      go();
      await until(async () => (await mirror.files('blobs')).length === 1, 'it is stored');
      await assertClean(0);
      assert.equal(upstream.count('blob'), normal);
    });

    test(`a stop in ${moment} without readers keeps what is there`, async () => {
      const { reached } = hold(match);
      await leaveAfter(reached);
      const started = performance.now();
      await mirror.stop();
      assert.ok(performance.now() - started < 5000);
      assert.equal((await mirror.files('ingest')).length, moment === 'the first call' ? 0 : 1);
      const before = upstream.blobBytes;
      await mirror.start();
      assertReply(await mirror.get(path), 'right');
      const known = { 'the first call': 0, 'the second call': MiB, 'the last call': 2 * MiB }[moment] ?? 0;
      assert.equal(upstream.blobBytes - before, blob.bytes.length - known);
      await assertClean(0);
    });
  }

  test('a commit that fails disturbs no reader, and leaves nothing', async () => {
    const directory = join(mirror.dataDirectory, 'blobs/sha256', blob.digest.slice(7, 9));
    await mkdir(join(mirror.dataDirectory, 'blobs/sha256'), { recursive: true });
    await writeFile(directory, 'in the way');
    assertReply(await mirror.get(path), 'right');
    await assertClean(0);
    await until(async () => (await mirror.metric('layercache_store_bytes')) === 0, 'its room is given back');
    await rm(directory);
    assertReply(await mirror.get(path), 'right');
    await until(async () => (await mirror.files('blobs')).length === 1, 'it is stored');
  });

  for (const [moment, match] of Object.entries(moments)) {
    test(
      `a disk that is full in ${moment}: readers go on past the store`,
      { skip: missing('mount') },
      async () => {
        await mirror.stop();
        await rm(mirror.dataDirectory, { recursive: true });
        await mkdir(mirror.dataDirectory);
        execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'none', mirror.dataDirectory]);
        try {
          await mirror.start();
          const { reached, go } = hold(match);
          const readers = [mirror.get(path), mirror.get(path, { headers: { range: `bytes=${2 * MiB}-` } })];
          await reached;
          // The catalog's files need some room of their own.
          const ballast = join(mirror.dataDirectory, 'ballast');
          await writeFile(ballast, Buffer.alloc(16 * MiB)).catch(() => undefined);
          go();
          const [whole, part] = await Promise.all(readers);
          assertReply(whole!, 'right');
          sameBytes(part!.body, blob.bytes.subarray(2 * MiB));
          await assertClean(0);
          await rm(ballast);
          assertReply(await mirror.get(path), 'right');
          await until(async () => (await mirror.files('blobs')).length === 1, 'it is stored');
        } finally {
          await mirror.stop();
          execFileSync('umount', [mirror.dataDirectory]);
        }
      },
    );
  }
});
