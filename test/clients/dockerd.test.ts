import { hashSync } from 'bcryptjs';
import assert from 'node:assert/strict';
import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ask } from '../support/http.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Daemon, DockerRegistry, missing, run } from '../support/programs.ts';
import { push, realImage } from '../support/publish.ts';
import { snippet } from '../support/snippets.ts';

const list = 'application/vnd.docker.distribution.manifest.list.v2+json';
const schema2 = 'application/vnd.docker.distribution.manifest.v2+json';
const skip = missing('dockerd', 'docker', 'docker-registry', 'busybox');

describe('dockerd with registry-mirrors', { skip }, () => {
  let directory: string;
  let registry: DockerRegistry;
  let closed: DockerRegistry;
  let mirror: TestMirror;
  let dockerd: Daemon;

  const docker = (...args: string[]) =>
    run('/usr/bin/docker', ['-H', `unix://${directory}/docker.sock`, ...args]);

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'layercache-docker-'));
    registry = await DockerRegistry.start(directory);
    const htpasswd = join(directory, 'htpasswd');
    await writeFile(htpasswd, `owner:${hashSync('registry-s3cret', 5)}\n`);
    closed = await DockerRegistry.start(directory, { name: 'closed', htpasswd });
    mirror = await TestMirror.start({
      upstream: registry.url,
      upstreams: [
        {
          registry: 'private.example',
          url: closed.url,
          accounts: [{ username: 'owner', password: 'registry-s3cret' }],
        },
      ],
    });
    const { host } = new URL(mirror.url);
    await writeFile(join(directory, 'daemon.json'), snippet('docs/clients.md', 'daemon.json', host));
    dockerd = new Daemon('dockerd', [
      ...['--iptables=false', '--ip6tables=false', '--bridge=none'],
      ...['--data-root', join(directory, 'data'), '--exec-root', join(directory, 'exec')],
      ...['--pidfile', join(directory, 'docker.pid'), '-H', `unix://${directory}/docker.sock`],
      ...['--config-file', join(directory, 'daemon.json')],
    ]);
    await until(
      () =>
        docker('version').then(
          () => true,
          () => false,
        ),
      'dockerd answers',
    );
    await publish();
    registry.forget();
  });

  after(async () => {
    await dockerd.stop();
    await run('umount', [join(directory, 'exec/netns/default')]).catch(() => undefined);
    await mirror.close();
    await registry.stop();
    await closed.stop();
    await rm(directory, { recursive: true, force: true });
  });

  /** An image for this machine, behind a multi-arch tag. */
  async function publish(): Promise<void> {
    const root = join(directory, 'root');
    await mkdir(join(root, 'bin'), { recursive: true });
    await cp('/bin/busybox', join(root, 'bin/busybox'));
    await run('tar', ['-C', root, '-cf', join(directory, 'root.tar'), '.']);
    const name = `localhost:${registry.port}/library/box:single`;
    await docker(
      'import',
      '--change',
      'CMD ["/bin/busybox", "echo", "it runs"]',
      join(directory, 'root.tar'),
      name,
    );
    await docker('push', name);
    await docker('rmi', name);
    const { headers } = await ask(`${registry.url}/v2/library/box/manifests/single`, {
      method: 'HEAD',
      headers: { accept: schema2 },
    });
    const { stdout } = await docker('version', '--format', '{{.Server.Os}}/{{.Server.Arch}}');
    const [os = '', architecture = ''] = stdout.trim().split('/');
    const body = JSON.stringify({
      schemaVersion: 2,
      mediaType: list,
      manifests: [
        {
          mediaType: schema2,
          digest: headers['docker-content-digest'],
          size: Number(headers['content-length']),
          platform: { os, architecture },
        },
      ],
    });
    const reply = await ask(`${registry.url}/v2/library/box/manifests/latest`, {
      method: 'PUT',
      headers: { 'content-type': list, 'content-length': String(Buffer.byteLength(body)) },
      body,
    });
    assert.equal(reply.status, 201);
  }

  async function pullAndRun(): Promise<void> {
    await docker('pull', 'box');
    const { stdout } = await docker('run', '--rm', '--network', 'none', 'box');
    assert.equal(stdout, 'it runs\n');
    await docker('rmi', 'box');
  }

  test('cold: one HEAD, two manifest GETs, each blob once', async () => {
    await pullAndRun();
    const pulls = registry.pulls();
    assert.equal(pulls.filter((pull) => pull === 'HEAD manifests/latest').length, 1, pulls.join('\n'));
    assert.equal(pulls.filter((pull) => pull.startsWith('GET manifests/sha256:')).length, 2);
    const blobs = pulls.filter((pull) => pull.includes(' blobs/'));
    assert.equal(blobs.length, 2);
    assert.equal(new Set(blobs).size, 2);
    assert.equal(pulls.length, 5);
  });

  test('by digest, and a private image by the account of the mirror, which goes by its prefix', async () => {
    const image = await realImage(directory, ['amd64', 'arm64']);
    const authorization = `Basic ${Buffer.from('owner:registry-s3cret').toString('base64')}`;
    await push(closed.url, 'acme/app', '1', image, authorization);
    await push(registry.url, 'library/app', '1', image);
    const host = new URL(mirror.url).host;
    for (const name of [
      `app@${image.index.digest}`,
      `${host}/private.example/acme/app:1`,
      `${host}/docker.io/app:1`,
    ]) {
      await docker('pull', name);
      const { stdout } = await docker('run', '--rm', '--network', 'none', name);
      assert.equal(stdout, process.arch === 'arm64' ? 'arm64\n' : 'amd64\n');
      await docker('rmi', name);
    }
    await assert.rejects(docker('pull', `${host}/acme/app:1`));
  });

  test('warm: no upstream call at all', async () => {
    registry.forget();
    await pullAndRun();
    assert.deepEqual(registry.pulls(), []);
  });

  test('with the upstream stopped: warm, and past the TTL as stale', async () => {
    await registry.stop();
    await pullAndRun();
    mirror.clock.advance(60 * 60_000);
    await pullAndRun();
    const stale = await mirror.metric(
      'layercache_requests_total{registry="docker.io",kind="manifest",result="stale"}',
    );
    assert.ok(stale >= 1);
  });

  test('what the mirror does not have while its upstream is stopped is an error that dockerd shows', async () => {
    await assert.rejects(docker('pull', 'absent'));
    assert.ok(
      (await mirror.metric(
        'layercache_requests_total{registry="docker.io",kind="manifest",result="error"}',
      )) > 0,
    );
  });
});
