import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { Agent } from 'node:http';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { ask, sameBytes } from '../support/http.ts';
import { imageOf, largeBlob, randomBlob } from '../support/images.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { canRunAs, inDirectory, missing, Program } from '../support/programs.ts';
import { Upstream } from '../support/upstream.ts';

const loopback = { listen: '127.0.0.1:0', adminListen: 'off', store: { minFreeBytes: 0 } };

describe('the program', () => {
  test('serves with the configuration beside it, and ends at once on SIGTERM when nothing runs', async () => {
    await inDirectory(loopback, async (directory) => {
      const program = new Program(['serve'], directory);
      const port = await program.port();
      assert.equal((await ask(`http://127.0.0.1:${port}/v2/`)).status, 200);
      program.child.kill('SIGTERM');
      await program.exited;
      assert.equal(program.child.exitCode, 0);
      assert.match(program.output, /"registry-mirrors\\": \[\\"http:\/\//);
    });
  });

  test('on SIGTERM running answers finish, new ones are refused, the exit is 0', async (t) => {
    const upstream = await Upstream.start();
    t.after(() => upstream.stop());
    const blob = largeBlob(8_000_000);
    upstream.addBlob('library/x', blob);
    const { promise: go, resolve: open } = Promise.withResolvers<undefined>();
    upstream.script('blob', async (_call, _req, res) => {
      res.writeHead(200, { 'content-length': blob.bytes.length });
      res.write(blob.bytes.subarray(0, 1_000_000));
      await go;
      res.end(blob.bytes.subarray(1_000_000));
    });
    const config = { ...loopback, upstreams: [{ registry: 'docker.io', url: upstream.url }] };
    await inDirectory(config, async (directory) => {
      const program = new Program(['serve'], directory);
      const url = `http://127.0.0.1:${await program.port()}`;
      // A client that keeps its connection for a next request.
      const agent = new Agent({ keepAlive: true });
      const started = Promise.withResolvers<undefined>();
      const reading = ask(`${url}/v2/library/x/blobs/${blob.digest}`, {
        agent,
        onHeaders: () => started.resolve(undefined),
      });
      await started.promise;
      program.child.kill('SIGTERM');
      await until(() => program.output.includes('running responses have 30 s'), 'it drains');
      // npm passes the same signal on: it is not a second one.
      program.child.kill('SIGTERM');
      await until(
        () =>
          ask(`${url}/v2/`).then(
            () => false,
            () => true,
          ),
        'nothing is accepted',
      );
      open(undefined);
      sameBytes((await reading).body, blob.bytes);
      const ended = performance.now();
      await program.exited;
      assert.ok(
        performance.now() - ended < 10_000,
        'it does not wait for a connection that is only kept alive',
      );
      agent.destroy();
      assert.equal(program.child.exitCode, 0);
    });
  });

  test('SIGHUP reads the configuration again; one that cannot be used changes nothing', async () => {
    await inDirectory(loopback, async (directory) => {
      const file = join(directory, 'mirror.config.json');
      const program = new Program(['serve'], directory);
      const url = `http://127.0.0.1:${await program.port()}`;
      const path = `${url}/v2/evil/app/manifests/sha256:totallywrong`;
      const statusIs = async (status: number) =>
        (await ask(path.replace('sha256:totallywrong', '1'))).status === status;
      await writeFile(file, JSON.stringify({ ...loopback, deny: ['docker.io/evil/**'] }));
      program.child.kill('SIGHUP');
      await until(() => statusIs(403), 'it is denied');
      await writeFile(file, JSON.stringify({ ...loopback, deny: 'nothing', adminToken: 5 }));
      program.child.kill('SIGHUP');
      await until(() => program.output.includes('keeping the previous one'), 'it is refused');
      assert.ok(program.output.includes(String.raw`deny: found \"nothing\", expected a list`));
      assert.ok(await statusIs(403));
      program.child.kill('SIGTERM');
      await program.exited;
      assert.equal(program.child.exitCode, 0);
    });
  });

  test('a wrong configuration is refused at start, by path, with what was found and expected', async () => {
    await inDirectory({ store: { maxBites: '5GB' } }, async (directory) => {
      const program = new Program(['serve', '--config', 'mirror.config.json'], directory);
      await program.exited;
      assert.equal(program.child.exitCode, 1);
      assert.match(
        program.errors,
        /mirror\.config\.json cannot be used:\n {2}store\.maxBites: unknown key, did you mean "maxBytes"\?/,
      );
      assert.equal(program.output, '');
    });
  });

  test('a data directory that cannot be used is refused, with what to do', async (t) => {
    await inDirectory({ ...loopback, store: { path: '/proc/1/layercache' } }, async (directory) => {
      const program = new Program(['serve'], directory);
      await program.exited;
      assert.equal(program.child.exitCode, 1);
      assert.match(program.errors, /store\.path: \/proc\/1\/layercache lies in a proc file system/);
    });
    if (!canRunAs(12345)) {
      t.diagnostic('another user’s directory: needs root, and a checkout that others can read');
      return;
    }
    await inDirectory(loopback, async (directory) => {
      await mkdir(join(directory, 'data'), { mode: 0o755 });
      // Whoever runs it can reach the program and the configuration, and not write the data.
      await chmod(directory, 0o755);
      const program = new Program(['serve'], directory, { uid: 12345, gid: 12345 });
      await program.exited;
      assert.equal(program.child.exitCode, 1);
      assert.match(
        program.errors,
        /store\.path: \S+data belongs to user 0, group 0 \(mode 755\), and layercache runs as user 12345/,
      );
      assert.match(program.errors, /chown -R 12345:12345 \S+data.*fsGroup/);
      assert.match(program.errors, /caused by: EACCES/);
    });
  });

  test('an address that is taken is told with what to do', async () => {
    await inDirectory(loopback, async (directory) => {
      const first = new Program(['serve'], directory);
      const port = await first.port();
      await inDirectory({ ...loopback, listen: `127.0.0.1:${port}` }, async (other) => {
        const second = new Program(['serve'], other);
        await second.exited;
        assert.equal(second.child.exitCode, 1);
        assert.match(
          second.errors,
          /cannot listen on 127\.0\.0\.1:\d+: the address is in use: stop the other/,
        );
      });
      first.child.kill('SIGTERM');
      await first.exited;
    });
  });

  test('limits that the disk does not have are told with figures, and /readyz says so', async (t) => {
    const upstream = await Upstream.start();
    const mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { store: { minFreeBytes: '900TB' } },
    });
    t.after(() => Promise.all([mirror.close(), upstream.stop()]));
    await until(() => mirror.log.includes('store.minFreeBytes is 900.0 TB'), 'it is told');
    await until(
      async () =>
        (await ask(`${mirror.adminUrl}/readyz`)).body.toString().startsWith('degraded: the file system'),
      'it is degraded',
    );
    await mirror.stop();
    mirror.log = '';
    mirror.reconfigure({ config: { store: { maxBytes: '900TB' } } });
    await mirror.start();
    await until(() => mirror.log.includes('store.maxBytes is 900.0 TB'), 'it is told');
    assert.equal((await ask(`${mirror.adminUrl}/readyz`)).body.toString(), 'ok\n');
  });

  test('a log that nobody reads is bounded: lines are dropped, counted, and told of', async () => {
    await inDirectory({ ...loopback, adminListen: '127.0.0.1:0' }, async (directory) => {
      const program = new Program(['serve'], directory);
      const port = await program.port();
      const admin = Number(/"admin":"127\.0\.0\.1:(\d+)"/.exec(program.output)?.[1]);
      program.child.stdout?.pause();
      const dropped = async (): Promise<number> => {
        const text = (await ask(`http://127.0.0.1:${admin}/metrics`)).body.toString();
        return Number(/^layercache_log_dropped_lines_total (\d+)$/m.exec(text)?.[1] ?? 0);
      };
      const agent = new Agent({ keepAlive: true, maxSockets: 16 });
      const headers = { 'user-agent': 'x'.repeat(190) };
      for (let round = 0; round < 60 && (await dropped()) === 0; round++)
        await Promise.all(
          Array.from({ length: 1000 }, () =>
            ask(`http://127.0.0.1:${port}/v2/${'y'.repeat(190)}/z`, { agent, headers }),
          ),
        );
      agent.destroy();
      assert.ok((await dropped()) > 0);
      program.child.stdout?.resume();
      await until(() => program.output.includes('log lines were dropped'), 'it is told');
      program.child.stdout?.pause();
      program.child.kill('SIGTERM');
      program.child.stdout?.resume();
      await program.exited;
      assert.equal(program.child.exitCode, 0);
    });
  });

  test('--version, --help, no command and an unknown one', async () => {
    await inDirectory({}, async (directory) => {
      for (const [args, expected] of [
        [['--version'], /^\d+\.\d+\.\d+\n$/],
        [['--help'], /Usage: layercache/],
        [[], /Usage: layercache .*\n[^]*serve/],
        [['store'], /Usage: layercache store .*\n[^]*purge/],
      ] as const) {
        const program = new Program([...args], directory);
        await program.exited;
        assert.match(program.output, expected);
        assert.equal(program.child.exitCode, 0);
      }
      for (const [args, nearest] of [
        [['serv'], 'serve'],
        [['store', 'usge'], 'usage'],
      ] as const) {
        const program = new Program([...args], directory);
        await program.exited;
        assert.match(program.errors, new RegExp(`unknown command .*\\n.*Did you mean ${nearest}`));
        assert.equal(program.child.exitCode, 1);
      }
    });
  });
});

test('what fetch.* says and the cap change while it runs; what cannot is named in full', async () => {
  const upstream = await Upstream.start();
  const image = imageOf([randomBlob(100_000)]);
  upstream.addImage('library/x', image, '1');
  upstream.script('manifest', () => new Promise(() => undefined), {
    match: ({ reference }) => reference === 'silent',
  });
  const mirror = await TestMirror.start({ upstream: upstream.url });
  try {
    await mirror.reload({
      config: {
        listen: '127.0.0.1:1',
        store: { path: '/elsewhere', maxBytes: '3GB', scrubEvery: 'off' },
        fetch: { firstByteTimeout: '300ms', prefetch: 'off' },
      },
    });
    await until(() => /"keys":\["listen","store.path"\]/.test(mirror.log), 'it is told');
    assert.equal(await mirror.metric('layercache_store_limit_bytes'), 3e9);
    const began = performance.now();
    assert.equal((await mirror.get('/v2/library/x/manifests/silent')).status, 504);
    assert.ok(performance.now() - began < 10_000, 'the new timeout counts');
    await mirror.get('/v2/library/x/manifests/1');
    assert.equal((await mirror.get(`/v2/library/x/blobs/${image.layers[0]!.digest}`)).status, 200);
  } finally {
    await mirror.close();
    await upstream.stop();
  }
});

describe('what the operator sees', () => {
  const image = imageOf([randomBlob(100_000)]);
  const layer = image.layers[0]!;

  async function withMirror(work: (mirror: TestMirror, upstream: Upstream) => Promise<void>): Promise<void> {
    const upstream = await Upstream.start({ auth: 'bearer', cdn: true });
    upstream.addImage('library/x', image, '1');
    const mirror = await TestMirror.start({ upstream: upstream.url });
    try {
      await work(mirror, upstream);
    } finally {
      await mirror.close();
      await upstream.stop();
    }
  }

  test('metrics: by registry, kind and result, and beside them those of the CNCF registry', async () => {
    await withMirror(async (mirror) => {
      for (const path of ['manifests/1', 'manifests/1', 'manifests/absent', `blobs/${layer.digest}`])
        await mirror.get(`/v2/library/x/${path}`);
      await mirror.fillsEnded();
      const expected = {
        'layercache_requests_total{registry="docker.io",kind="manifest",result="miss"}': 1,
        'layercache_requests_total{registry="docker.io",kind="manifest",result="hit"}': 1,
        'layercache_requests_total{registry="docker.io",kind="manifest",result="error"}': 1,
        'layercache_requests_total{registry="docker.io",kind="blob",result="miss"}': 1,
        'layercache_served_bytes_total{registry="docker.io",kind="blob",result="miss"}': layer.bytes.length,
        'layercache_upstream_requests_total{registry="docker.io",kind="manifest",status="200"}': 2,
        'layercache_upstream_requests_total{registry="docker.io",kind="manifest",status="404"}': 1,
        'layercache_upstream_requests_total{registry="docker.io",kind="token",status="200"}': 1,
        'layercache_upstream_requests_total{registry="docker.io",kind="ping",status="401"}': 1,
        'layercache_upstream_requests_total{registry="docker.io",kind="blob",status="307"}': 1,
        'layercache_upstream_requests_total{registry="docker.io",kind="redirect",status="200"}': 1,
        'layercache_upstream_bytes_total{registry="docker.io"}':
          layer.bytes.length + image.manifest.bytes.length,
        'layercache_faults_total{fault="manifest-unknown"}': 1,
        layercache_fill_bytes_pending: 0,
        layercache_store_limit_bytes: 50e9,
        layercache_request_seconds_count: 4,
        layercache_first_byte_seconds_count: 4,
        'registry_proxy_requests_total{type="manifest"}': 3,
        'registry_proxy_hits_total{type="manifest"}': 1,
        'registry_proxy_misses_total{type="blob"}': 1,
        'registry_proxy_pulled_bytes_total{type="blob"}': layer.bytes.length,
        'registry_proxy_pushed_bytes_total{type="blob"}': layer.bytes.length,
      };
      for (const [series, value] of Object.entries(expected))
        assert.equal(await mirror.metric(series), value, series);
      assert.ok((await mirror.metric('layercache_store_bytes')) >= layer.bytes.length);
      const text = await mirror.metrics();
      assert.match(text, /layercache_build_info\{version="[\d.]+",node="v\d+/);
      assert.match(text, /process_resident_memory_bytes \d+/);
    });
  });

  test('promtool finds nothing wrong with them', { skip: missing('promtool') ?? false }, async () => {
    const upstream = await Upstream.start({ auth: 'bearer', pulls: 5 });
    upstream.addImage('library/x', imageOf([randomBlob(1000)]), '1');
    const mirror = await TestMirror.start({ upstream: upstream.url });
    for (const path of ['manifests/1', 'manifests/2', 'tags/list', `blobs/sha256:${'0'.repeat(64)}`])
      await mirror.get(`/v2/x/${path}`);
    const checked = spawnSync('promtool', ['check', 'metrics'], { input: await mirror.metrics() });
    await mirror.close();
    await upstream.stop();
    assert.equal(`${checked.stdout.toString()}${checked.stderr.toString()}`, '');
    assert.equal(checked.status, 0);
  });

  test('health and readiness on the admin address alone', async () => {
    await withMirror(async (mirror) => {
      for (const path of ['/healthz', '/readyz']) {
        assert.equal((await ask(`${mirror.adminUrl}${path}`)).status, 200);
        assert.equal((await mirror.get(path)).status, 404);
      }
      assert.equal((await mirror.get('/metrics')).status, 404);
      assert.equal((await ask(`${mirror.adminUrl}/v2/`)).status, 404);
    });
  });

  test('one access line a request, in JSON, whatever the client sends', async () => {
    await withMirror(async (mirror) => {
      await mirror.get('/v2/library/x/manifests/1', { headers: { 'user-agent': 'a"b\\c' } });
      await mirror.get(`/v2/library/x/blobs/${layer.digest}`);
      await mirror.get('/v2/UPPER/manifests/x?secret=1');
      await mirror.stop();
      const lines = mirror.log
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line) as Record<string, unknown>);
      const access = lines.filter(({ msg }) => msg === 'request');
      assert.equal(access.length, 3);
      const { time, ms, firstByteMs, ...first } = access[0]!;
      assert.ok([time, ms, firstByteMs].every((value) => typeof value === 'number'));
      assert.deepEqual(first, {
        level: 30,
        msg: 'request',
        method: 'GET',
        kind: 'manifest',
        registry: 'docker.io',
        repo: 'library/x',
        reference: '1',
        status: 200,
        result: 'miss',
        bytes: image.manifest.bytes.length,
        upstreamCalls: 4,
        client: '127.0.0.1',
        agent: 'a"b\\c',
      });
      assert.equal(access[1]!['upstreamCalls'], 2);
      assert.equal(access[2]!['fault'], 'name-invalid');
      assert.ok(!mirror.log.includes('secret'));
    });
  });
});
