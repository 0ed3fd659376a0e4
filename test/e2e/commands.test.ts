import Database from 'better-sqlite3';
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { ask, sameBytes } from '../support/http.ts';
import { imageOf, randomBlob, type Blob, type Image } from '../support/images.ts';
import { TestMirror, until, type MirrorOptions } from '../support/mirror.ts';
import { run } from '../support/programs.ts';
import { Upstream } from '../support/upstream.ts';

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

describe('store commands', () => {
  let upstream: Upstream;
  let mirror: TestMirror;
  const shared = randomBlob(200_000);
  const images: Record<string, Image> = {
    'library/x:1': imageOf([shared, randomBlob(100_000)]),
    'library/x:2': imageOf([shared, randomBlob(100_000)]),
    'acme/y:1': imageOf([randomBlob(100_000)]),
  };

  beforeEach(async () => {
    upstream = await Upstream.start();
    for (const [name, image] of Object.entries(images)) {
      const [repo = '', tag = ''] = name.split(':');
      upstream.addImage(repo, image, tag);
    }
    await begin();
  });

  async function begin(options: Partial<MirrorOptions> = {}): Promise<void> {
    mirror = await TestMirror.start({ upstream: upstream.url, ...options });
    for (const [name, image] of Object.entries(images)) {
      const [repo = '', tag = ''] = name.split(':');
      await mirror.get(`/v2/${repo}/manifests/${tag}`);
      for (const { digest } of [image.config, ...image.layers])
        await mirror.get(`/v2/${repo}/blobs/${digest}`);
    }
    await until(async () => (await mirror.files('blobs')).length === 10, 'all is stored');
  }

  afterEach(async () => {
    await mirror.close();
    await upstream.stop();
  });

  /** `isRunning`: the address of the running mirror's admin API is known. */
  async function layercache(args: string[], env: Record<string, string> = {}, uid?: number): Promise<Ended> {
    const file = join(mirror.directory, 'mirror.config.json');
    const admin: Record<string, string> = mirror.isRunning
      ? { LAYERCACHE_ADMIN_LISTEN: mirror.adminUrl.replace('http://', '') }
      : {};
    const options = {
      env: { ...process.env, ...admin, ...env },
      ...(uid !== undefined && { uid, gid: uid }),
    };
    try {
      const { stdout, stderr } = await run(
        process.execPath,
        ['src/main.js', 'store', ...args, '--config', file],
        options,
      );
      return { code: 0, out: stdout, err: stderr };
    } catch (error) {
      const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
      return { code, out: stdout, err: stderr };
    }
  }

  async function json<T>(...args: string[]): Promise<T> {
    const { out, err } = await layercache([...args, '--json']);
    assert.ok(out.startsWith('{') || out.startsWith('['), out + err);
    return JSON.parse(out) as T;
  }

  const pathOf = ({ digest }: Blob): string =>
    join(mirror.dataDirectory, 'blobs/sha256', digest.slice(7, 9), digest.slice(7));
  const isHeld = async (blob: Blob): Promise<boolean> =>
    stat(pathOf(blob)).then(
      () => true,
      () => false,
    );

  test('what lists or shows changes nothing, though much could be tidied up', async () => {
    const blobs = async (): Promise<string[]> => (await mirror.files('blobs')).map(({ path }) => path).sort();
    await mirror.stop();
    const file = join(mirror.directory, 'mirror.config.json');
    const config = JSON.parse(await readFile(file, 'utf8')) as { store: object };
    await writeFile(file, JSON.stringify({ ...config, store: { ...config.store, maxIdle: '1ms' } }));
    const held = await blobs();
    assert.equal(held.length, 10);
    const commands = [['pins'], ['purge', 'docker.io/**', '--dry-run'], ['list'], ['usage'], ['verify']];
    for (const command of commands) assert.equal((await layercache(command)).code, 0, command.join(' '));
    assert.deepEqual(await blobs(), held);
    assert.equal((await layercache(['pin', 'docker.io/acme/y:1'])).code, 0);
    assert.deepEqual(await blobs(), held, 'nor is anything else done beside what was asked for');
  });

  test('what lists or shows needs no right to write, and leaves nothing behind', async () => {
    // With the mirror stopped in order, and as it is left by kill -9: with a log that is not in the catalog yet.
    const rest = join(mirror.directory, 'rest');
    const late = imageOf([]);
    upstream.addImage('library/z', late, 'late');
    await mirror.get('/v2/library/z/manifests/late');
    // A copy that is made while it is stored could have its row and not its file.
    const hex = late.manifest.digest.slice(7);
    await until(async () => (await mirror.files()).some(({ path }) => path.endsWith(hex)), 'it is stored');
    await run('cp', ['-a', mirror.dataDirectory, rest]);
    await rm(join(rest, 'catalog.db-shm'));
    await mirror.stop();
    await chmod(mirror.directory, 0o755);
    const isRoot = process.getuid?.() === 0;
    if (!isRoot) await run('chmod', ['-R', 'a-w', rest, mirror.dataDirectory]);
    const look = async (path: string): Promise<string> =>
      (await run('find', [path, '-printf', '%p %T@ %s\n'])).stdout;
    for (const path of [mirror.dataDirectory, rest]) {
      const before = await look(path);
      const commands = [['pins'], ['purge', 'docker.io/**', '--dry-run'], ['list'], ['usage'], ['verify']];
      for (const command of commands) {
        const env = { LAYERCACHE_STORE_PATH: path };
        const { code, out, err } = await layercache(command, env, isRoot ? 65534 : undefined);
        assert.equal(code, 0, `${command.join(' ')}: ${err}`);
        if (command[0] === 'list') assert.match(out, /library\/z:late/);
      }
      assert.equal(await look(path), before);
    }
    if (!isRoot) await run('chmod', ['-R', 'u+w', rest, mirror.dataDirectory]);
  });

  test('the admin API takes nothing that is misspelt or of another kind for its default', async () => {
    const post = (operation: string, body: object) =>
      ask(`${mirror.adminUrl}/api/${operation}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
    const pattern = 'docker.io/acme/**';
    for (const body of [
      { pattern, dryRun: 'true' },
      { pattern, dryRun: 1 },
      { pattern, dryRun: null },
      { pattern, dryrun: true },
      { pattern, 'dry-run': true },
      { pattern: 1, dryRun: true },
      {},
    ]) {
      const reply = await post('purge', body);
      assert.equal(reply.status, 400, JSON.stringify(body));
      assert.match((JSON.parse(reply.body.toString()) as { error: string }).error, /^purge: /);
    }
    assert.equal((await mirror.files('blobs')).length, 10, 'nothing is gone');
    assert.equal((await post('purge', { pattern, dryRun: true })).status, 200);
    assert.equal((await mirror.files('blobs')).length, 10);
  });

  test('verify beside a mirror that evicts all the time finds nothing wrong', async () => {
    await mirror.close();
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { store: { maxBytes: '3MB' }, fetch: { prefetch: 'off' }, log: { level: 'error' } },
    });
    let isOver = false;
    const client = async (): Promise<void> => {
      while (!isOver) {
        const blob = randomBlob(70_000);
        upstream.addBlob('library/x', blob);
        await mirror.get(`/v2/library/x/blobs/${blob.digest}`);
      }
    };
    const clients = Promise.all(Array.from({ length: 8 }, client));
    await until(async () => (await mirror.files('blobs')).length > 20, 'it is full');
    for (let i = 0; i < 2; i++) {
      const { code, out } = await layercache(['verify']);
      assert.equal(code, 0, out);
    }
    isOver = true;
    await clients;
  });

  test('what repos share is told, and the rest is what purging frees', async () => {
    upstream.addImage('acme/z', imageOf([shared, randomBlob(50_000)]), '1');
    const image = (await mirror.get('/v2/acme/z/manifests/1')).body.toString();
    const { config, layers } = JSON.parse(image) as Record<'config', Blob> & { layers: Blob[] };
    for (const { digest } of [config, ...layers]) await mirror.get(`/v2/acme/z/blobs/${digest}`);
    await until(async () => (await mirror.files('blobs')).length === 13, 'all is stored');
    const { repos } = await json<{ repos: { repo: string; bytes: number; sharedBytes: number }[] }>('usage');
    for (const repo of ['acme/z', 'library/x', 'acme/y']) {
      const { bytes, sharedBytes } = repos.find((each) => each.repo === repo)!;
      assert.equal(sharedBytes, repo === 'acme/y' ? 0 : 49 * 4096, repo);
      const purged = await json<{ bytes: number }>('purge', `docker.io/${repo}`, '--dry-run');
      assert.equal(purged.bytes, bytes - sharedBytes, repo);
    }
  });

  for (const state of ['running', 'stopped'] as const) {
    test(`usage, list, pins and purge, with the mirror ${state}`, async () => {
      if (state === 'stopped') await mirror.stop();
      const usage = await json<{
        blobs: number;
        repos: { repo: string; blobs: number; sharedBytes: number }[];
      }>('usage');
      assert.equal(usage.blobs, 10);
      assert.deepEqual(
        usage.repos.map(({ repo, blobs }) => [repo, blobs]),
        [
          ['library/x', 7],
          ['acme/y', 3],
        ],
      );
      assert.match((await layercache(['usage'])).out, /docker\.io\/library\/x +7 .*\n(.*\n)*\n10 blobs, /);
      const list = await json<{ repo: string; tag: string; isPinned: boolean }[]>(
        'list',
        'docker.io/library/**',
      );
      assert.deepEqual(
        list.map(({ tag }) => tag),
        ['1', '2'],
      );
      assert.match((await layercache(['list'])).out, /docker\.io\/acme\/y:1 +sha256:/);

      assert.equal((await layercache(['pin', 'docker.io/library/x:1'])).code, 0);
      assert.match((await layercache(['pins'])).out, /docker\.io\/library\/x:1 +command/);
      const dry = await json<{ blobs: number; kept: number }>('purge', 'docker.io/library/x', '--dry-run');
      assert.deepEqual([dry.blobs, dry.kept], [3, 1]);
      assert.ok(await isHeld(images['library/x:2']!.manifest));
      const purged = await json<{ blobs: number; kept: number }>('purge', 'docker.io/library/x');
      assert.deepEqual([purged.blobs, purged.kept], [3, 1]);
      assert.ok(!(await isHeld(images['library/x:2']!.manifest)));
      assert.ok(await isHeld(shared));
      assert.ok(await isHeld(images['acme/y:1']!.manifest));
      assert.equal((await layercache(['unpin', 'docker.io/library/x:1'])).code, 0);
      await json('purge', 'docker.io/**');
      assert.equal((await mirror.files('blobs')).length, 0);
    });
  }

  for (const state of ['running', 'stopped'] as const) {
    test(`patterns are written as images are named; what matches nothing says so, with the mirror ${state}`, async () => {
      if (state === 'stopped') await mirror.stop();
      assert.match((await layercache(['list', 'x:1'])).out, /docker\.io\/library\/x:1 +sha256:/);
      assert.match(
        (await layercache(['list', 'index.docker.io/acme/y'])).out,
        /docker\.io\/acme\/y:1 +sha256:/,
      );
      assert.match((await layercache(['list', 'acme/y'])).out, /docker\.io\/acme\/y:1 +sha256:/);
      assert.match((await layercache(['pin', 'x'])).out, /^[\d.]+ kB are pinned\n$/);
      assert.match((await layercache(['pins'])).out, /docker\.io\/library\/x +command/);
      assert.equal((await layercache(['unpin', 'x'])).code, 0);
      const pinned = await layercache(['pin', 'nosuch']);
      assert.equal(pinned.code, 0);
      assert.match(pinned.out, /docker\.io\/library\/nosuch: no known tag matches yet/);

      const absent = 'docker.io/library/absent:1';
      const listed = await layercache(['list', 'absent:1']);
      assert.deepEqual([listed.code, listed.out.includes(`${absent}: no known tag matches`)], [0, true]);
      const purged = await layercache(['purge', 'absent:1']);
      assert.deepEqual([purged.code, purged.out], [1, `${absent}: nothing matches\n`]);
      assert.equal((await layercache(['purge', 'absent:1', '--json'])).code, 1);
      assert.equal((await layercache(['purge', 'absent:1', '--dry-run'])).code, 0);
      assert.match((await layercache(['purge', 'x:1'])).out, /^deleted: 1 tag, \d+ blobs, /);
    });
  }

  test('what cannot be done is said with its reason, and ends with 1', async () => {
    for (const [args, why] of [
      [['pin', 'ghcr.io'], /ghcr\.io: not a pattern such as/],
      [['unpin', 'docker.io/x'], /docker\.io\/x: not pinned/],
      [['unpin', 'x'], /docker\.io\/library\/x: not pinned/],
      [['purge', '**'], /\*\*: not a pattern/],
      [['list', 'a b'], /a b: not a pattern/],
      [['list', 'UP:1'], /UP:1: names of images are in lower case/],
      [['import', '/nowhere'], /\/nowhere: not the directory of a registry/],
      [['import', '/nowhere', '--registry', 'quay.io'], /quay\.io: not a configured upstream \(docker\.io\)/],
      [['rebuild'], /is locked: another layercache is running/],
    ] as const) {
      const { code, err } = await layercache([...args]);
      assert.equal(code, 1);
      assert.match(err, why);
    }
    const { err } = await layercache(['unpin', 'docker.io/**'], { LAYERCACHE_ADMIN_LISTEN: 'off' });
    assert.match(err, /a mirror is running on this store with adminListen off/);
  });

  for (const state of ['running', 'stopped'] as const) {
    test(`verify names what is wrong and repairs it, with the mirror ${state}`, async () => {
      // The mirror is not to find it first: it does not scrub, and has served nothing since it started.
      await mirror.close();
      await begin({ config: { store: { scrubEvery: 'off' } } });
      await mirror.stop();
      await mirror.start();
      assert.deepEqual(
        await layercache(['verify']).then(({ code, out }) => [code, /10 blobs, .* 0 damaged/.test(out)]),
        [0, true],
      );
      const [flipped, cut, gone] = [
        shared,
        images['acme/y:1']!.layers[0]!,
        images['library/x:1']!.layers[1]!,
      ];
      const bytes = Buffer.from(flipped.bytes);
      bytes[100_000] = (bytes[100_000] ?? 0) ^ 1;
      await writeFile(pathOf(flipped), bytes);
      await truncate(pathOf(cut), 5);
      await rm(pathOf(gone));
      if (state === 'stopped') await mirror.stop();
      const { code, out } = await layercache(['verify']);
      assert.equal(code, 1);
      assert.match(out, new RegExp(`${flipped.digest}: its bytes do not match the digest`));
      assert.match(out, new RegExp(`${cut.digest}: its file has 5 bytes, expected 100000`));
      assert.match(out, new RegExp(`${gone.digest}: its file is missing`));
      const repaired = await layercache(['verify', '--repair']);
      assert.equal(repaired.code, 0);
      assert.match(repaired.out, /3 damaged, 3 quarantined/);
      if (state === 'stopped') await mirror.start();
      for (const [repo, blob] of [
        ['library/x', flipped],
        ['acme/y', cut],
        ['library/x', gone],
      ] as const) {
        sameBytes((await mirror.get(`/v2/${repo}/blobs/${blob.digest}`)).body, blob.bytes);
      }
      assert.equal((await layercache(['verify'])).code, 0);
    });
  }

  test('rebuild: from a backup, and from the files alone; nothing is downloaded again', async () => {
    for (const base of ['backup', 'nothing'] as const) {
      await until(
        async () => (await mirror.files()).some(({ path }) => path === 'catalog.backup.db'),
        'it is backed up',
      );
      await mirror.stop();
      const catalog = join(mirror.dataDirectory, 'catalog.db');
      await writeFile(catalog, 'this is no database at all, and never was one');
      if (base === 'nothing') await rm(join(mirror.dataDirectory, 'catalog.backup.db'));
      await assert.rejects(
        mirror.start(),
        /catalog\.db cannot be used \(SQLITE_NOTADB\).*layercache store rebuild/,
      );
      const { out } = await layercache(['rebuild', '--json']);
      const { base: from, keptAs } = JSON.parse(out) as { base: string; keptAs: string };
      assert.equal(from, base);
      assert.equal(await readFile(keptAs, 'utf8'), 'this is no database at all, and never was one');
      upstream.forget();
      await mirror.start();
      for (const [name, image] of Object.entries(images)) {
        const [repo = '', tag = ''] = name.split(':');
        assert.equal((await mirror.get(`/v2/${repo}/manifests/${tag}`)).status, 200);
        for (const blob of [image.config, ...image.layers])
          sameBytes((await mirror.get(`/v2/${repo}/blobs/${blob.digest}`)).body, blob.bytes);
      }
      assert.equal(upstream.blobBytes, 0);
      assert.equal(upstream.count('manifest', { method: 'GET' }), 0);
    }
  });

  test('of a damaged catalog all say so, with what to do', async () => {
    await mirror.stop();
    const file = join(mirror.dataDirectory, 'catalog.db');
    const db = new Database(file);
    const row = db
      .prepare<[], { page: number }>(
        `SELECT rootpage AS page FROM sqlite_master WHERE name = 'links_by_repo'`,
      )
      .get();
    db.close();
    const bytes = await readFile(file);
    randomBlob(4096).bytes.copy(bytes, 4096 * ((row?.page ?? 0) - 1));
    await writeFile(file, bytes);
    const pattern = 'docker.io/acme/**';
    const commands = [['usage'], ['list'], ['pins'], ['verify'], ['purge', pattern, '--dry-run']];
    for (const command of [...commands, ['purge', pattern], ['pin', pattern]]) {
      const { code, err } = await layercache(command);
      assert.equal(code, 1, command.join(' '));
      assert.match(err, /catalog\.db cannot be used \(SQLITE_CORRUPT\).*"layercache store rebuild"/);
    }
    assert.equal((await layercache(['rebuild'])).code, 0);
    assert.equal((await layercache(['verify'])).code, 0);
  });

  test('a catalog that is gone or empty beside blobs is not begun anew', async () => {
    await until(
      async () => (await mirror.files()).some(({ path }) => path === 'catalog.backup.db'),
      'it is backed up',
    );
    await mirror.stop();
    for (const spoil of [(file: string) => rm(file), (file: string) => truncate(file, 0)]) {
      await spoil(join(mirror.dataDirectory, 'catalog.db'));
      await assert.rejects(mirror.start(), /catalog\.db is missing or empty.*layercache store rebuild/);
      assert.equal((await mirror.files('blobs')).length, 10);
      assert.equal((await json<{ base: string }>('rebuild')).base, 'backup');
    }
    await mirror.start();
    assert.equal((await mirror.get('/v2/library/x/manifests/1')).headers['x-cache'], 'hit');
  });

  test('import of a registry:2 directory: verified, by hard link, with its tags', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'layercache-test-'));
    const root = join(directory, 'docker/registry/v2');
    const image = imageOf([randomBlob(100_000)]);
    const place = async (path: string, content: Buffer | string): Promise<void> => {
      await mkdir(dirname(join(root, path)), { recursive: true });
      await writeFile(join(root, path), content);
    };
    const now = mirror.clock.now() / 1000;
    for (const { digest, bytes } of [image.manifest, image.config, ...image.layers]) {
      const hex = digest.slice(7);
      await place(`blobs/sha256/${hex.slice(0, 2)}/${hex}/data`, bytes);
      const where = digest === image.manifest.digest ? '_manifests/revisions' : '_layers';
      await place(`repositories/library/z/${where}/sha256/${hex}/link`, digest);
      await utimes(join(root, `repositories/library/z/${where}/sha256/${hex}/link`), now, now);
    }
    await place('repositories/library/z/_manifests/tags/1/current/link', image.manifest.digest);
    await utimes(join(root, 'repositories/library/z/_manifests/tags/1/current/link'), now, now);
    const wrong = createHash('sha256').update('something').digest('hex');
    await place(`blobs/sha256/${wrong.slice(0, 2)}/${wrong}/data`, 'something else');
    const { code, out } = await layercache(['import', directory]);
    assert.equal(code, 1);
    assert.match(out, new RegExp(`blob sha256:${wrong}: its bytes do not match the digest`));
    assert.match(out, /imported: 3 blobs, .*, 1 tag; 0 blobs already stored/);
    assert.equal((await stat(pathOf(image.layers[0]!))).nlink, 2);
    await upstream.stop();
    for (const path of [
      'manifests/1',
      ...[image.config, ...image.layers].map(({ digest }) => `blobs/${digest}`),
    ]) {
      const reply = await mirror.get(`/v2/library/z/${path}`);
      assert.equal(reply.headers['x-cache'], 'hit', path);
    }
    assert.equal((await json<{ known: number }>('import', directory)).known, 3);
    await rm(directory, { recursive: true });
  });

  test('an import that does not fit under the cap says so', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'layercache-test-'));
    for (let i = 0; i < 10; i++) {
      const { digest, bytes } = randomBlob(100_000);
      const hex = digest.slice(7);
      const path = join(directory, `docker/registry/v2/blobs/sha256/${hex.slice(0, 2)}/${hex}`);
      await mkdir(path, { recursive: true });
      await writeFile(join(path, 'data'), bytes);
    }
    await mkdir(join(directory, 'docker/registry/v2/repositories'), { recursive: true });
    await mirror.reload({ config: { store: { maxBytes: 400_000 } } });
    const { code, out } = await layercache(['import', directory]);
    assert.equal(code, 1, out);
    assert.match(out, /\d imported blobs evicted again: they do not fit under store\.maxBytes/);
    await rm(directory, { recursive: true });
  });

  test('operations from a non-loopback address need a token', async () => {
    const post = (headers: Record<string, string>) =>
      ask(`${mirror.adminUrl}/api/pins`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: '{}',
      });
    assert.equal((await post({})).status, 200);
    assert.equal((await post({ host: 'evil.example' })).status, 403);
    await mirror.close();
    mirror = await TestMirror.start({
      upstream: upstream.url,
      config: { adminListen: '127.0.0.1:0', adminToken: 's3cr3t-token' },
    });
    assert.equal((await post({})).status, 401);
    assert.equal((await post({ authorization: 'Bearer wrong' })).status, 401);
    assert.equal((await post({ authorization: 'Bearer s3cr3t-token' })).status, 200);
    assert.equal((await layercache(['pins'])).code, 0);
  });
});
