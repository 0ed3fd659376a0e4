import assert from 'node:assert/strict';
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { Verifier } from '../../../../src/store/ingest/verifier.ts';
import { findDamage } from '../../../../src/store/upkeep/check.ts';
import { largeBlob } from '../../../support/images.ts';

describe('verifier', () => {
  const blob = largeBlob(12 * 1024 * 1024);
  const threads: Worker[] = [];
  const deaths: Error[] = [];
  let directory: string;
  let path: string;
  let verifier: Verifier;
  // The only access to the private thread.
  // eslint-disable-next-line @typescript-eslint/unbound-method -- restored below
  const { unref } = Worker.prototype;

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'layercache-verifier-'));
    path = join(directory, 'blob');
    await writeFile(path, blob.bytes);
    Worker.prototype.unref = function (this: Worker) {
      if (!threads.includes(this)) threads.push(this);
      unref.call(this);
    };
    verifier = new Verifier((error) => deaths.push(error));
  });
  after(async () => {
    Worker.prototype.unref = unref;
    await verifier.close();
    await rm(directory, { recursive: true });
  });

  const size = blob.bytes.length;

  test('a thread that dies is restarted, and hashes files from the start', async () => {
    const handle = await open(path);
    const verification = verifier.start(blob.digest, handle.fd);
    verification.advance(5_000_000);
    await verification.reached();
    await threads.at(-1)!.terminate();
    verification.advance(size);
    assert.equal(await verification.matches(), true);
    const again = verifier.start(blob.digest, handle.fd);
    again.advance(size);
    const pending = again.matches();
    await threads.at(-1)!.terminate();
    assert.equal(await pending, true, 'also during a pending call');
    await Promise.all([verification.end(), again.end()]);
    await handle.close();
    assert.equal(threads.length, 3);
    assert.equal(deaths.length, 2, 'it is told');
  });

  test('bytes that were only fed are not claimed as hashed', async () => {
    const verification = verifier.start(blob.digest);
    await verification.feed(new Uint8Array(blob.bytes.subarray(0, 1000)));
    await threads.at(-1)!.terminate();
    await assert.rejects(
      verification.feed(new Uint8Array(blob.bytes.subarray(1000))).then(() => verification.matches()),
    );
  });

  test('damage of a file is found on the verifier thread', async () => {
    const check = (what: { digest: typeof blob.digest; size: number }, file = path) =>
      findDamage(verifier, file, what, () => undefined);
    const { digest } = blob;
    assert.equal(await check({ digest, size }), undefined);
    assert.match((await check({ digest, size: size - 1 }))!, /expected/);
    assert.match((await check({ digest, size: size + 1 }))!, /expected/);
    assert.match((await check({ digest: largeBlob(size).digest, size }))!, /do not match/);
    assert.match((await check({ digest, size }, join(directory, 'none')))!, /missing/);
  });
});
