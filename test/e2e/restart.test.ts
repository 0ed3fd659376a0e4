import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { sendBlob } from '../support/bodies.ts';
import { ask, sameBytes, type Reply } from '../support/http.ts';
import { largeBlob } from '../support/images.ts';
import { until } from '../support/mirror.ts';
import { missing, Program } from '../support/programs.ts';
import { Upstream } from '../support/upstream.ts';

const MB = 1_000_000;

describe('a fill goes on from what is on disk', () => {
  let upstream: Upstream;
  let directory: string;
  let program: Program;
  const blob = largeBlob(96 * MB);

  beforeEach(async () => {
    upstream = await Upstream.start();
    upstream.addBlob('library/x', blob);
    directory = await mkdtemp(join(tmpdir(), 'layercache-test-'));
    await mkdir(join(directory, 'data'));
    await writeFile(
      join(directory, 'mirror.config.json'),
      JSON.stringify({
        listen: '127.0.0.1:0',
        adminListen: 'off',
        store: { minFreeBytes: 0 },
        upstreams: [{ registry: 'docker.io', url: upstream.url }],
      }),
    );
  });

  afterEach(async () => {
    await kill();
    await upstream.stop();
    await rm(directory, { recursive: true });
  });

  async function kill(): Promise<void> {
    program.child.kill('SIGKILL');
    await program.exited;
  }

  /** Starts the program and a pull. */
  async function pull(): Promise<{ reply: Promise<Reply> }> {
    program = new Program(['serve'], directory);
    const port = await program.port();
    const reply = ask(`http://127.0.0.1:${port}/v2/library/x/blobs/${blob.digest}`);
    reply.catch(() => undefined);
    return { reply };
  }

  async function sent(bytes: number): Promise<void> {
    await until(() => upstream.blobBytes >= bytes, `${bytes} bytes have come`);
  }

  test('after kill -9, three times over', async () => {
    upstream.script('blob', sendBlob(blob, { bytesPerSecond: 16 * MB }));
    for (const part of [0.3, 0.55, 0.8]) {
      await pull();
      await sent(part * blob.bytes.length);
      await kill();
    }
    const reply = await (await pull()).reply;
    assert.equal(reply.broken, false);
    sameBytes(reply.body, blob.bytes);
    assert.ok(upstream.blobBytes < 1.4 * blob.bytes.length, `${upstream.blobBytes} bytes`);
  });

  const programs = missing('mkfs.ext4', 'xfs_io', 'mount', 'losetup');
  test('after a power cut', { skip: programs }, async () => {
    const image = join(directory, 'disk');
    const data = join(directory, 'data');
    execFileSync('truncate', ['-s', '512M', image]);
    execFileSync('mkfs.ext4', ['-q', image]);
    execFileSync('mount', ['-o', 'loop', image, data]);
    try {
      upstream.script('blob', sendBlob(blob, { bytesPerSecond: 8 * MB }));
      await pull();
      await sent(0.75 * blob.bytes.length);
      program.child.kill('SIGSTOP');
      execFileSync('xfs_io', ['-x', '-c', 'shutdown', data]);
      await kill();
      execFileSync('umount', [data]);
      execFileSync('mount', ['-o', 'loop', image, data]);
      upstream.forget();
      const reply = await (await pull()).reply;
      assert.equal(reply.broken, false);
      sameBytes(reply.body, blob.bytes);
      // What was synced in time need not come again.
      assert.ok(upstream.blobBytes < 0.8 * blob.bytes.length, `${upstream.blobBytes} bytes`);
    } finally {
      await kill();
      execFileSync('umount', [data]);
    }
  });
});
