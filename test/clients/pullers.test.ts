import { hashSync } from 'bcryptjs';
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Authority } from '../support/certificates.ts';
import { TestMirror, until } from '../support/mirror.ts';
import { Daemon, DockerRegistry, missing, run } from '../support/programs.ts';
import { push, realImage } from '../support/publish.ts';
import { snippet } from '../support/snippets.ts';

/**
 * Real clients against a mirror of two registries that we did not write: one for everybody, one that wants a login, which
 * the mirror has. Each of them pulls a multi-arch image cold, warm and with both registries stopped, by tag and by
 * digest, the private image, and what it can through TLS with a password.
 */

/** What one client does with an image at a mirror. Throws when it does not get it. */
interface Puller {
  /** `name`: `library/box:1`, as the registry knows it. */
  pull(registry: 'docker.io' | 'private.example', name: string): Promise<void>;
  /** From the mirror that wants TLS and a password; absent where the client cannot. */
  pullSafely?(name: string): Promise<void>;
  /** The tags of an image; absent where the client does not list them. */
  tags?(name: string): Promise<string[]>;
}

const skipAll = missing('docker-registry', 'busybox', 'openssl');
const shown = (title: string, at: string): string => snippet('docs/clients.md', title, at);
const login = { username: 'ci', password: 'mirror-s3cret' };

describe('real clients', { skip: skipAll }, () => {
  let directory: string;
  let open: DockerRegistry;
  let closed: DockerRegistry;
  let mirror: TestMirror;
  let safe: TestMirror;
  let authority: Authority;
  let digest: string;
  const daemons: Daemon[] = [];

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'layercache-'));
    const htpasswd = join(directory, 'htpasswd');
    await writeFile(
      htpasswd,
      `owner:${hashSync('registry-s3cret', 5)}\n${login.username}:${hashSync(login.password, 5)}\n`,
    );
    open = await DockerRegistry.start(directory, { name: 'open' });
    closed = await DockerRegistry.start(directory, { name: 'closed', htpasswd });
    const image = await realImage(directory, ['amd64', 'arm64']);
    digest = image.index.digest;
    for (const tag of ['1', '2', '3']) await push(open.url, 'library/box', tag, image);
    const owner = `Basic ${Buffer.from('owner:registry-s3cret').toString('base64')}`;
    await push(closed.url, 'acme/box', '1', image, owner);
    authority = await Authority.create(directory);
    const config = {
      upstream: open.url,
      upstreams: [
        {
          registry: 'private.example',
          url: closed.url,
          accounts: [{ username: 'owner', password: 'registry-s3cret' }],
        },
      ],
    };
    mirror = await TestMirror.start(config);
    safe = await TestMirror.start({
      ...config,
      config: { tls: await authority.sign('mirror'), clients: { htpasswd } },
    });
  });

  after(async () => {
    for (const daemon of daemons) await daemon.stop();
    await Promise.all([mirror.close(), safe.close(), open.stop(), closed.stop()]);
    await rm(directory, { recursive: true, force: true });
  });

  const hostOf = (from: TestMirror): string => new URL(from.url).host;

  /** The mirror as if it had just been installed, and the registries up. */
  async function fresh(): Promise<void> {
    for (const each of [mirror, safe]) {
      if (each.isRunning) await each.stop();
      await rm(each.dataDirectory, { recursive: true, force: true });
      await each.start();
    }
    open.forget();
    closed.forget();
  }

  function exercise(
    client: string,
    skip: string | undefined,
    create: (home: string) => Promise<Puller>,
  ): void {
    describe(client, { skip: skipAll ?? skip }, () => {
      let puller: Puller;
      before(async () => {
        await fresh();
        // podman wants short paths.
        const home = join(directory, client.slice(-5).replace(/\W/g, '-'));
        await mkdir(home);
        puller = await create(home);
      });

      test('cold: no manifest and no blob twice', async () => {
        await puller.pull('docker.io', 'library/box:1');
        const pulls = open.pulls().filter((pull) => pull.startsWith('GET'));
        assert.ok(pulls.length >= 3, pulls.join('\n'));
        assert.equal(new Set(pulls).size, pulls.length, pulls.join('\n'));
      });

      test('warm: no upstream call', async () => {
        open.forget();
        await puller.pull('docker.io', 'library/box:1');
        assert.deepEqual(open.pulls(), []);
      });

      test('by digest', () => puller.pull('docker.io', `library/box@${digest}`));

      test('a private image, by the account of the mirror', async () => {
        await puller.pull('private.example', 'acme/box:1');
        await assert.rejects(puller.pull('private.example', 'acme/other:1'));
      });

      test('lists its tags', async (t) => {
        if (puller.tags) assert.deepEqual((await puller.tags('library/box')).sort(), ['1', '2', '3']);
        else t.skip('it does not');
      });

      test('through TLS with a password', async (t) => {
        if (puller.pullSafely) await puller.pullSafely('library/box:1');
        else t.skip('it cannot');
      });

      test('with both registries stopped: what was pulled, also past its time', async () => {
        await Promise.all([open.stop(), closed.stop()]);
        try {
          await puller.pull('docker.io', 'library/box:1');
          mirror.clock.advance(60 * 60_000);
          await puller.pull('docker.io', 'library/box:1');
          await puller.pull('private.example', 'acme/box:1');
          await assert.rejects(puller.pull('docker.io', 'library/absent:1'));
        } finally {
          await Promise.all([open.resume(), closed.resume()]);
        }
      });
    });
  }

  /** A containerd of its own. */
  async function containerd(home: string): Promise<(...args: string[]) => Promise<unknown>> {
    const config = join(home, 'config.toml');
    const socket = join(home, 'containerd.sock');
    await writeFile(
      config,
      [
        'version = 2',
        `root = "${home}/root"`,
        `state = "${home}/state"`,
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]',
        `[grpc]\n  address = "${socket}"`,
      ].join('\n'),
    );
    daemons.push(new Daemon('containerd', ['--config', config]));
    const ctr = (...args: string[]) => run('ctr', ['-a', socket, ...args]);
    await until(
      () =>
        ctr('version').then(
          () => true,
          () => false,
        ),
      'containerd answers',
    );
    return ctr;
  }

  async function hostsOf(home: string, registry: string, toml: string): Promise<string> {
    const hosts = join(home, 'certs.d');
    await mkdir(join(hosts, registry), { recursive: true });
    await writeFile(join(hosts, registry, 'hosts.toml'), toml);
    return hosts;
  }

  async function pullWith(
    ctr: (...args: string[]) => Promise<unknown>,
    image: string,
    options: string[],
  ): Promise<void> {
    try {
      await ctr('images', 'pull', '--snapshotter', 'native', '--platform', 'linux/amd64', ...options, image);
      await ctr('images', 'check', '--snapshotter', 'native', `name==${image}`);
    } finally {
      await ctr('images', 'rm', '--sync', image).catch(() => undefined);
      await ctr('content', 'prune', 'references').catch(() => undefined);
    }
  }

  exercise('containerd with hosts.toml (ns)', missing('containerd', 'ctr', 'runc'), async (home) => {
    const ctr = await containerd(home);
    await hostsOf(home, 'docker.io', shown('hosts.toml', hostOf(mirror)));
    // For every registry that has no file of its own.
    await hostsOf(home, '_default', shown('_default/hosts.toml', hostOf(mirror)));
    const safely = await hostsOf(
      join(home, 'safe'),
      'docker.io',
      shown('hosts.toml with a password', hostOf(safe))
        .replace('/etc/containerd/mirror-ca.pem', authority.certificate)
        .replace('Y2k6c2VjcmV0', Buffer.from(`${login.username}:${login.password}`).toString('base64')),
    );
    return {
      pull: (registry, name) => pullWith(ctr, `${registry}/${name}`, ['--hosts-dir', join(home, 'certs.d')]),
      pullSafely: (name) => pullWith(ctr, `docker.io/${name}`, ['--hosts-dir', safely]),
    };
  });

  exercise('containerd by the address of the mirror', missing('containerd', 'ctr', 'runc'), async (home) => {
    const ctr = await containerd(home);
    return {
      pull: (registry, name) => pullWith(ctr, `${hostOf(mirror)}/${registry}/${name}`, ['--plain-http']),
    };
  });

  exercise('podman with registries.conf', missing('podman'), async (home) => {
    const conf = async (file: string, location: string, insecure: boolean): Promise<string> => {
      const path = join(home, file);
      const blocks = ['docker.io', 'private.example'].map((registry) =>
        shown('registries.conf', location)
          .replaceAll('docker.io', registry)
          .replace('insecure = true', `insecure = ${insecure}`),
      );
      await writeFile(path, blocks.join('\n'));
      return path;
    };
    const plain = await conf('registries.conf', hostOf(mirror), true);
    const tls = await conf('registries-tls.conf', hostOf(safe), false);
    await mkdir(join(home, 'certs', hostOf(safe)), { recursive: true });
    await writeFile(join(home, 'policy.json'), '{"default":[{"type":"insecureAcceptAnything"}]}');
    await writeFile(
      join(home, 'auth.json'),
      JSON.stringify({
        auths: {
          [hostOf(safe)]: { auth: Buffer.from(`${login.username}:${login.password}`).toString('base64') },
        },
      }),
    );
    const podman = (configuration: string, args: string[]) =>
      run(
        'podman',
        ['--root', join(home, 'root'), '--runroot', join(home, 'run'), '--storage-driver', 'vfs', ...args],
        {
          env: {
            ...process.env,
            CONTAINERS_REGISTRIES_CONF: configuration,
            REGISTRY_AUTH_FILE: join(home, 'auth.json'),
            SSL_CERT_FILE: authority.certificate,
          },
        },
      );
    const pull = async (configuration: string, image: string): Promise<void> => {
      await podman(configuration, ['pull', '--signature-policy', join(home, 'policy.json'), image]);
      await podman(configuration, ['rmi', '-a', '-f']);
    };
    return {
      pull: (registry, name) => pull(plain, `${registry}/${name}`),
      pullSafely: (name) => pull(tls, `docker.io/${name}`),
    };
  });

  exercise('skopeo, all platforms', missing('skopeo'), async (home) => {
    await writeFile(join(home, 'policy.json'), '{"default":[{"type":"insecureAcceptAnything"}]}');
    const skopeo = async (...args: string[]): Promise<string> =>
      (await run('skopeo', ['--policy', join(home, 'policy.json'), ...args])).stdout;
    let count = 0;
    const copy = async (from: string, ...options: string[]): Promise<void> => {
      const to = join(home, `copy-${count++}`);
      await skopeo('copy', '--all', ...options, `docker://${from}`, `dir:${to}`);
      assert.match(await readFile(join(to, 'manifest.json'), 'utf8'), /"architecture":\s*"arm64"/);
    };
    await mkdir(join(home, 'certs'));
    await writeFile(join(home, 'certs/ca.crt'), await readFile(authority.certificate));
    return {
      pull: (registry, name) => copy(`${hostOf(mirror)}/${registry}/${name}`, '--src-tls-verify=false'),
      pullSafely: (name) =>
        copy(
          `${hostOf(safe)}/${name}`,
          ...['--src-cert-dir', join(home, 'certs'), '--src-creds', `${login.username}:${login.password}`],
        ),
      tags: async (name) =>
        (
          JSON.parse(
            await skopeo('list-tags', '--tls-verify=false', `docker://${hostOf(mirror)}/${name}`),
          ) as {
            Tags: string[];
          }
        ).Tags,
    };
  });

  exercise('crane', missing('crane'), async (home) => {
    const env = { ...process.env, DOCKER_CONFIG: home, SSL_CERT_FILE: authority.certificate };
    const crane = async (...args: string[]): Promise<string> => (await run('crane', args, { env })).stdout;
    const pull = async (image: string): Promise<void> => {
      await crane('pull', '--insecure', '--format', 'oci', image, join(home, 'image'));
      await crane('validate', '--insecure', '--remote', image);
    };
    await crane('auth', 'login', hostOf(safe), '-u', login.username, '-p', login.password);
    return {
      pull: (registry, name) => pull(`${hostOf(mirror)}/${registry}/${name}`),
      pullSafely: async (name) => {
        await crane('pull', `${hostOf(safe)}/${name}`, join(home, 'safe.tar'));
      },
      tags: async (name) => (await crane('ls', '--insecure', `${hostOf(mirror)}/${name}`)).trim().split('\n'),
    };
  });

  exercise('regctl', missing('regctl'), async (home) => {
    const env = { ...process.env, REGCTL_CONFIG: join(home, 'config.json'), HOME: home };
    const regctl = async (...args: string[]): Promise<string> => (await run('regctl', args, { env })).stdout;
    await regctl('registry', 'set', hostOf(mirror), '--tls', 'disabled', '--skip-check');
    await regctl(
      'registry',
      'set',
      hostOf(safe),
      '--skip-check',
      '--cacert',
      await readFile(authority.certificate, 'utf8'),
    );
    await regctl(
      'registry',
      'login',
      hostOf(safe),
      '-u',
      login.username,
      '-p',
      login.password,
      '--skip-check',
    );
    let count = 0;
    const copy = async (image: string): Promise<void> => {
      await regctl('image', 'copy', '--referrers', image, `ocidir://${join(home, `copy-${count++}`)}`);
    };
    return {
      pull: (registry, name) => copy(`${hostOf(mirror)}/${registry}/${name}`),
      pullSafely: (name) => copy(`${hostOf(safe)}/${name}`),
      tags: async (name) => (await regctl('tag', 'ls', `${hostOf(mirror)}/${name}`)).trim().split('\n'),
    };
  });
});
