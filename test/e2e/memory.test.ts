import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { request } from 'node:http';
import { platform } from 'node:os';
import { test } from 'node:test';
import { digestOf } from '../../src/oci/digest.ts';
import { ociIndex } from '../support/images.ts';
import { inDirectory, Program } from '../support/programs.ts';
import { Upstream } from '../support/upstream.ts';

const MB = 1_000_000;
const count = 80;
const skip = platform() === 'linux' ? false : 'needs /proc';

/** An answer of which nobody keeps the body. */
function pull(url: string): Promise<{ status: number; length: number }> {
  return new Promise((resolve, reject) => {
    request(url, { agent: false }, (res) => {
      let length = 0;
      res.on('data', (chunk: Buffer) => (length += chunk.length));
      res.on('end', () => resolve({ status: res.statusCode ?? 0, length }));
      res.on('error', reject);
    })
      .on('error', reject)
      .end();
  });
}

test('many large manifests at once take turns in memory, and all of them come', { skip }, async (t) => {
  const upstream = await Upstream.start();
  t.after(() => upstream.stop());
  const padding = 'x'.repeat(7 * MB);
  const bodyOf = (tag: string): Buffer =>
    Buffer.from(
      `{"schemaVersion":2,"mediaType":"${ociIndex}","manifests":[],"annotations":{"${tag}":"${padding}"}}`,
    );
  upstream.script('manifest', ({ method, reference }, _req, res) => {
    const tag = [...tags.entries()].find(([name, digest]) => reference === name || reference === digest)?.[0];
    const bytes = bodyOf(tag ?? '');
    res.writeHead(200, {
      'content-type': ociIndex,
      'content-length': bytes.length,
      'docker-content-digest': digestOf(bytes),
    });
    res.end(method === 'HEAD' ? undefined : bytes);
  });
  const tags = new Map(
    Array.from({ length: count }, (_, i) => [`t${i}`, digestOf(bodyOf(`t${i}`)) as string]),
  );
  const config = {
    listen: '127.0.0.1:0',
    adminListen: 'off',
    store: { minFreeBytes: 0 },
    upstreams: [{ registry: 'docker.io', url: upstream.url }],
  };
  await inDirectory(config, async (directory) => {
    const program = new Program(['serve'], directory);
    const port = await program.port();
    const answers = await Promise.all(
      [...tags.keys()].map((tag) => pull(`http://127.0.0.1:${port}/v2/library/x/manifests/${tag}`)),
    );
    const right = answers.filter(({ status, length }) => status === 200 && length > 7 * MB).length;
    const refused = answers.filter(({ status }) => status === 503).length;
    assert.equal(right + refused, count, 'each comes whole, or is told to come again');
    assert.ok(right >= count / 2, `${right}`);
    const status = await readFile(`/proc/${program.child.pid ?? 0}/status`, 'utf8');
    const peak = Number(/VmHWM:\s+(\d+)/.exec(status)?.[1]) * 1024;
    t.diagnostic(`${right} of ${count} at once, peak ${Math.round(peak / MB)} MB`);
    assert.ok(peak < 600 * MB, `${peak}`);
    program.child.kill('SIGTERM');
    await program.exited;
  });
});
