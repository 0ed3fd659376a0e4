import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { ConfigError, loadConfig, type Config } from '../../src/config.ts';

describe('configuration', () => {
  const directory = mkdtempSync(join(tmpdir(), 'layercache-test-'));
  after(() => rmSync(directory, { recursive: true }));

  function load(content: unknown, env: Record<string, string> = {}): Config {
    const file = join(directory, 'c.json');
    writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content));
    return loadConfig({ file, env, directory });
  }

  function problems(content: unknown, env: Record<string, string> = {}): readonly string[] {
    try {
      load(content, env);
    } catch (error) {
      assert.ok(error instanceof ConfigError, String(error));
      return error.problems;
    }
    return [];
  }

  test('with no file at all it mirrors Docker Hub', () => {
    const config = loadConfig({ env: {}, directory: join(directory, 'nowhere') });
    assert.deepEqual(config.listen, { host: '0.0.0.0', port: 5000 });
    assert.deepEqual(config.adminListen, { host: '127.0.0.1', port: 5001 });
    assert.equal(config.store.path, join(directory, 'nowhere/data'));
    assert.equal(config.store.maxBytes, 50e9);
    assert.equal(config.tags.ttl, 300_000);
    assert.deepEqual(config.fetch, {
      connectionsPerBlob: 4,
      spanBytes: 16 * 1024 * 1024,
      maxConnections: 64,
      prefetch: 'chain',
      connectTimeout: 5000,
      headersTimeout: 20_000,
      idleTimeout: 30_000,
      giveUpAfter: 30_000,
      firstByteTimeout: 25_000,
      completeRanges: true,
      maxManifestBytes: 8 * 1024 * 1024,
    });
    assert.equal(config.defaultUpstream, 'docker.io');
    assert.equal(config.upstreams[0]?.url.href, 'https://registry-1.docker.io/');
    assert.deepEqual(config.upstreams[0].aliases, ['index.docker.io', 'registry-1.docker.io']);
  });

  test('units, off, and paths relative to the file', () => {
    const config = load({
      listen: '[::]:5000',
      adminListen: 'off',
      store: { path: 'x', maxBytes: '1.5GiB', minFreeBytes: 'off' },
      tags: { ttl: 0, staleIfError: 'off', negativeTtl: 250 },
      fetch: { idleTimeout: '90s' },
      upstreams: [{ registry: 'quay.io', tags: { ttl: '1m' } }],
    });
    assert.deepEqual(config.listen, { host: '::', port: 5000 });
    assert.equal(config.adminListen, null);
    assert.deepEqual(config.store, {
      path: join(directory, 'x'),
      maxBytes: 1.5 * 1024 ** 3,
      minFreeBytes: 0,
      maxIdle: 0,
      pins: [],
      scrubEvery: 7 * 24 * 60 * 60_000,
    });
    assert.deepEqual(config.tags, {
      ttl: 0,
      staleIfError: 0,
      negativeTtl: 250,
      revalidate: 'wait',
      whenGone: '404',
      rules: [],
    });
    assert.equal(config.fetch.idleTimeout, 90_000);
    assert.equal(config.upstreams[0]?.url.href, 'https://quay.io/');
    assert.equal(config.upstreams[0].tags.ttl, 60_000);
    assert.equal(config.defaultUpstream, 'quay.io');
  });

  test('the environment goes over the file, and names of no key are only told', () => {
    const env = {
      LAYERCACHE_STORE_MAX_BYTES: '7GB',
      LAYERCACHE_ADMIN_LISTEN: 'off',
      LAYERCACHE_UPSTREAMS_0_URL: 'https://hub.example',
      LAYERCACHE_FETCH_MAX_CONNECTIONS: '3',
      LAYERCACHE_SERVICE_HOST: '10.0.0.1',
      LAYERCACHE_STORE: 'x',
      LAYERCACHE_CONFIG: 'c.json',
    };
    const config = load(
      { store: { maxBytes: '5GB', minFreeBytes: '1GB' }, upstreams: [{ registry: 'x.io' }] },
      env,
    );
    assert.equal(config.store.maxBytes, 7e9);
    assert.equal(config.store.minFreeBytes, 1e9);
    assert.equal(config.adminListen, null);
    assert.equal(config.fetch.maxConnections, 3);
    assert.equal(config.upstreams[0]?.url.href, 'https://hub.example/');
    assert.deepEqual(config.ignoredVariables, ['LAYERCACHE_SERVICE_HOST', 'LAYERCACHE_STORE']);
  });

  test('secrets from file and environment', () => {
    writeFileSync(join(directory, 'secret'), 'from-file\n');
    const accounts = (password: unknown) => ({
      upstreams: [{ registry: 'x.io', accounts: [{ username: 'u', password }] }],
    });
    const passwordOf = (config: Config): unknown => {
      const account = config.upstreams[0]?.accounts[0];
      return account && 'password' in account ? account.password : undefined;
    };
    // A file is read when its content is needed.
    assert.deepEqual(passwordOf(load(accounts({ file: 'secret' }))), { file: join(directory, 'secret') });
    assert.equal(passwordOf(load(accounts({ env: 'P' }), { P: 'from-env' })), 'from-env');
    assert.equal(passwordOf(load(accounts('plain'))), 'plain');
    assert.deepEqual(problems(accounts({ env: 'P' })), [
      'upstreams[0].accounts[0].password: the environment variable P is not set',
    ]);
    assert.match(problems(accounts({ file: 'none' }))[0] ?? '', /the file none cannot be read \(ENOENT\)/);
    assert.deepEqual(problems(accounts(5)), [
      'upstreams[0].accounts[0].password: found something else, expected a string, { "env": "NAME" } or { "file": "path" }',
    ]);
  });

  test('several accounts, anonymous among them', () => {
    writeFileSync(join(directory, 'docker.json'), '{}');
    const { upstreams } = load({
      upstreams: [
        {
          registry: 'x.io',
          accounts: [{ username: 'a', password: 'b' }, { anonymous: true }],
          dockerConfig: 'docker.json',
          credentialHelper: 'ecr-login',
        },
      ],
    });
    assert.deepEqual(upstreams[0]?.accounts, [{ username: 'a', password: 'b' }, { anonymous: true }]);
    assert.equal(upstreams[0].dockerConfig, join(directory, 'docker.json'));
  });

  const upstreamWith = (keys: object) => ({ upstreams: [{ registry: 'x.io', ...keys }] });
  const refused: [content: unknown, problem: RegExp][] = [
    [
      upstreamWith({ accounts: [{ username: 'a' }] }),
      /^upstreams\[0\]\.accounts\[0\]: found something else, expected username and password, or \{ "anonymous": true \}$/,
    ],
    [
      upstreamWith({
        accounts: [
          { username: 'a', password: 'b' },
          { username: 'a', password: 'c' },
        ],
      }),
      /^upstreams\[0\]\.accounts: found "a" a second time, expected each account once$/,
    ],
    [
      upstreamWith({ dockerConfig: 'none.json' }),
      /^upstreams\[0\]\.dockerConfig: the file .*none\.json does not exist$/,
    ],
    [
      upstreamWith({ credentialHelper: '../sh' }),
      /^upstreams\[0\]\.credentialHelper: found "\.\.\/sh", expected the name/,
    ],
    [{ quota: { whenSpent: 404 } }, /^quota\.whenSpent: found 404, expected "429" or "503"$/],
    [{ quota: { reserve: -1 } }, /^quota\.reserve: found -1, expected a whole number$/],
    [
      { tags: { rules: [{ match: 'alpine', ttl: '1d' }] } },
      /^tags\.rules\[0\]\.match: found "alpine", expected a pattern/,
    ],
    ['{', /^not JSON: /],
    [[], /^found \[\], expected an object$/],
    [{ stor: {} }, /^stor: unknown key, did you mean "store"\?$/],
    [
      { store: { quota: 1 } },
      /^store\.quota: unknown key; known here: path, maxBytes, minFreeBytes, maxIdle, pins, scrubEvery$/,
    ],
    [
      { store: { maxBytes: '5 apples' } },
      /^store\.maxBytes: found "5 apples", expected a size such as "512MB" or "50GiB", or "off"$/,
    ],
    [{ store: 5 }, /^store: found 5, expected a value of type object$/],
    [{ tags: { ttl: '5 minutes or so' } }, /^tags\.ttl: found "5 minutes or so", expected a duration/],
    [{ tags: { ttl: -1 } }, /^tags\.ttl: found -1, expected a duration/],
    [{ fetch: { maxConnections: 0 } }, /^fetch\.maxConnections: found 0, expected a whole number above 0$/],
    [{ fetch: { spanBytes: '64KiB' } }, /^fetch\.spanBytes: found "64KiB", expected a size above 64 KiB/],
    [{ fetch: { prefetch: 'all' } }, /^fetch\.prefetch: found "all", expected one of "chain", "off"$/],
    [{ fetch: { idleTimeout: 0 } }, /^fetch\.idleTimeout: found 0, expected a duration above 0/],
    [{ log: { level: 'loud' } }, /^log\.level: found "loud", expected one of "fatal", "error"/],
    [{ listen: 5000 }, /^listen: found 5000, expected an address/],
    [{ listen: '0.0.0.0:99999' }, /^listen: found "0\.0\.0\.0:99999", expected an address/],
    [{ upstreams: [] }, /^upstreams: found \[\], expected at least one upstream$/],
    [{ upstreams: [{}] }, /^upstreams\[0\]\.registry: found nothing, expected a value of type string$/],
    [
      { upstreams: [{ registry: 'x.io', url: 'ftp://x' }] },
      /^upstreams\[0\]\.url: found "ftp:\/\/x", expected a URL/,
    ],
    [
      { upstreams: [{ registry: 'x.io', url: 'http://x.io' }] },
      /^upstreams\[0\]\.url: .*plain http is for private/,
    ],
    [
      { upstreams: [{ registry: 'a.io' }, { registry: 'b.io', aliases: ['a.io'] }] },
      /^upstreams\[1\]: found "a\.io" a second time/,
    ],
    [{ defaultUpstream: 'b.io' }, /^defaultUpstream: found "b\.io", expected one of "docker\.io"$/],
  ];
  for (const [content, problem] of refused) {
    test(`${JSON.stringify(content)} is refused`, () => {
      const found = problems(content);
      assert.equal(found.length, 1, found.join('\n'));
      assert.match(found[0] ?? '', problem);
    });
  }

  test('a file that was named must be there', () => {
    assert.throws(
      () => loadConfig({ file: 'absent.json', env: {}, directory }),
      /absent\.json cannot be used:\n.*ENOENT/,
    );
  });
});
