import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { loadConfig } from '../../../src/config/load.ts';
import { ConfigError } from '../../../src/config/problems.ts';
import type { Config } from '../../../src/config/types.ts';

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
      // What Kubernetes sets for services of our name.
      LAYERCACHE_SERVICE_HOST: '10.0.0.1',
      LAYERCACHE_SERVICE_PORT: '5000',
      LAYERCACHE_SERVICE_PORT_REGISTRY: '5000',
      LAYERCACHE_PORT: 'tcp://10.0.0.1:5000',
      LAYERCACHE_PORT_5000_TCP: 'tcp://10.0.0.1:5000',
      LAYERCACHE_PORT_5000_TCP_ADDR: '10.0.0.1',
      LAYERCACHE_ADMIN_SERVICE_HOST: '10.0.0.1',
      LAYERCACHE_ADMIN_PORT_5001_TCP_PROTO: 'tcp',
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
    assert.deepEqual(config.ignoredVariables, ['LAYERCACHE_STORE']);
  });

  test('a variable that nearly names a key is refused, with the one that it may mean', () => {
    for (const [name, meant] of [
      ['LAYERCACHE_STORE_MAXBYTES', 'LAYERCACHE_STORE_MAX_BYTES'],
      ['LAYERCACHE_STORE_MAX_BYTE', 'LAYERCACHE_STORE_MAX_BYTES'],
      ['LAYERCACHE_ADMINLISTEN', 'LAYERCACHE_ADMIN_LISTEN'],
      ['LAYERCACHE_UPSTREAMS_2_URLS', 'LAYERCACHE_UPSTREAMS_2_URL'],
    ] as const)
      assert.deepEqual(problems({}, { [name]: 'x' }), [
        `the environment variable ${name} matches no key: did you mean ${meant}? Rename or unset it`,
      ]);
  });

  test('a credential helper that is not there is refused', () => {
    const config = { upstreams: [{ registry: 'x.io', credentialHelper: 'not-here' }] };
    assert.deepEqual(problems(config), [
      'upstreams[0].credentialHelper: the program docker-credential-not-here is not on the PATH: install it, or name another helper',
    ]);
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
    writeFileSync(join(directory, 'docker-credential-ecr-login'), '', { mode: 0o755 });
    const content = {
      upstreams: [
        {
          registry: 'x.io',
          accounts: [{ username: 'a', password: 'b' }, { anonymous: true }],
          dockerConfig: 'docker.json',
          credentialHelper: 'ecr-login',
        },
      ],
    };
    const { upstreams } = load(content, { PATH: `/nowhere:${directory}` });
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
    ['{', /^line 1, column 2: not JSON: close brace expected\n {4}\{\n {5}\^$/],
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
    [{ fetch: { idleTimeout: 0 } }, /^fetch\.idleTimeout: found 0, expected a duration of 10 ms to 24 days/],
    [{ fetch: { firstByteTimeout: '30d' } }, /^fetch\.firstByteTimeout: found "30d", expected a duration of/],
    [{ fetch: { firstByteTimeout: 1 } }, /^fetch\.firstByteTimeout: found 1, expected a duration of 100 ms/],
    [{ fetch: { maxManifestBytes: 1 } }, /^fetch\.maxManifestBytes: found 1, expected a size of at least/],
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
    ...[
      '*',
      '*.com',
      '*.co.uk',
      '*.github.io',
      'azurecr.*',
      '*.1.1',
      'a..b',
      '.com',
      '-',
      'Docker.io',
      'v2',
    ].map((registry): [unknown, RegExp] => [
      { upstreams: [{ registry: 'docker.io' }, { registry }] },
      /^upstreams\[1\]\.registry: found ".*", expected a host such as .* or a pattern/,
    ]),
    [{ upstreams: [{ registry: '*.azurecr.io' }] }, /^upstreams: found only patterns/],
    [
      { upstreams: [{ registry: 'x.io' }, { registry: '*.azurecr.io', url: 'https://x.io' }] },
      /^upstreams\[1\]\.url: found a URL, expected nothing: a pattern covers many registries/,
    ],
    [
      {
        upstreams: [
          { registry: 'x.io' },
          { registry: '*.azurecr.io', accounts: [{ username: 'u', password: 's3cret' }] },
        ],
      },
      /^upstreams\[1\]\.accounts: found a login, expected nothing/,
    ],
    [
      upstreamWith({ url: 'https://bob:s3cret@reg.test?t=s3cret' }),
      /^upstreams\[0\]\.url: found "https:\/\/…@reg.test\?…"/,
    ],
    [upstreamWith({ hosts: ['x.io'] }), /^upstreams\[0\]: found "x\.io" a second time/],
    [upstreamWith({ ca: 'absent.pem' }), /^upstreams\[0\]\.ca: the file absent\.pem cannot be read/],
    [
      upstreamWith({ proxy: 'socks5://u:s3cret@x' }),
      /^upstreams\[0\]\.proxy: found something else, expected a URL/,
    ],
    [upstreamWith({ proxy: 'http://u:%zz@x' }), /^upstreams\[0\]\.proxy: found something else/],
    [
      upstreamWith({ realms: ['javascript:x'] }),
      /^upstreams\[0\]\.realms\[0\]: found "javascript:x", expected a URL/,
    ],
    [
      upstreamWith({ insecureSkipVerify: 'yes' }),
      /^upstreams\[0\]\.insecureSkipVerify: found "yes", expected true or false/,
    ],
    [{ allow: 'docker.io/**' }, /^allow: found "docker\.io\/\*\*", expected a list$/],
    [{ deny: ['evil'] }, /^deny\[0\]: found "evil", expected a pattern/],
    [
      { deny: ['docker.io/Evil/**'] },
      /^deny\[0\]: found "docker\.io\/Evil\/\*\*", expected a name in lower case/,
    ],
    [{ trustedProxies: ['10/8'] }, /^trustedProxies\[0\]: found "10\/8", expected an address or network/],
    ...['010.0.0.1', '10.1', '::ffff:10.0.0.0/104', '10.0.0.0/33', 'localhost'].map(
      (network): [unknown, RegExp] => [
        { clients: { allowFrom: [network] } },
        /^clients\.allowFrom\[0\]: found ".*", expected an address or network/,
      ],
    ),
    ...[true, [5], '0x10', '1e9', 0, -1].map((value): [unknown, RegExp] => [
      { clients: { maxRequestsPerSecond: value } },
      /^clients\.maxRequestsPerSecond: found .*, expected a whole number above 0, or "off"$/,
    ]),
    [{ clients: { htpasswd: 'none' } }, /^clients\.htpasswd: the file .*none cannot be read \(ENOENT\)$/],
    [
      { clients: { htpasswd: 'ada:$2b$10$CwTycUXWue0Thq9StjUM0u' } },
      /^clients\.htpasswd: the file \(not shown\) cannot be read \(ENOENT\)$/,
    ],
    [
      { clients: { groups: [{ name: 'a' }, { name: 'a' }] } },
      /^clients\.groups\[1\]: found "a" a second time/,
    ],
    [{ tls: { cert: 'a' } }, /^tls\.key: found nothing, expected a value of type string$/],
    [{ tls: { cert: 'a', key: 'b' } }, /^tls\.cert: the file .*a cannot be read \(ENOENT\)$/],
    [{ defaultUpstream: 'b.io' }, /^defaultUpstream: found "b\.io", expected one of "docker\.io"$/],
  ];
  for (const [content, problem] of refused) {
    test(`${JSON.stringify(content)} is refused`, () => {
      const found = problems(content);
      assert.equal(found.length, 1, found.join('\n'));
      assert.match(found[0] ?? '', problem);
    });
  }

  test('proxies: of the upstream, of the environment, or none', () => {
    const proxyOf = (upstream: object, env: Record<string, string>): string | undefined => {
      const [found] = load({ upstreams: [{ registry: 'x.io', ...upstream }] }, env).upstreams;
      return found?.proxy && `${found.proxy.url.href} except ${found.proxy.except}`;
    };
    const env = { HTTPS_PROXY: 'http://a:3128', HTTP_PROXY: 'http://b:3128', NO_PROXY: '.lan', no_proxy: '' };
    assert.equal(proxyOf({}, env), 'http://a:3128/ except .lan');
    assert.equal(proxyOf({ url: 'http://10.0.0.1' }, env), 'http://b:3128/ except .lan');
    assert.equal(proxyOf({ proxy: 'http://c:1' }, env), 'http://c:1/ except .lan');
    assert.equal(proxyOf({ proxy: 'off' }, env), undefined);
    assert.equal(
      proxyOf({}, { https_proxy: '', HTTPS_PROXY: 'proxy.lan:3128' }),
      'http://proxy.lan:3128/ except ',
    );
    assert.equal(proxyOf({}, { ALL_PROXY: 'http://all:1' }), 'http://all:1/ except ');
    assert.equal(proxyOf({}, {}), undefined);
    assert.match(
      problems({}, { HTTPS_PROXY: 'socks5://u:s3cret@x' })[0] ?? '',
      /^upstreams\[0\]\.proxy: HTTPS_PROXY is not/,
    );
  });

  test('patterns by an alias mean its registry; those of another one are told', () => {
    const config = load({
      deny: ['index.docker.io/evil/**', 'hub.example/x', 'nosuch.io/x'],
      upstreams: [{ registry: 'docker.io', hosts: ['hub.example'] }],
    });
    assert.deepEqual(
      config.deny.map(({ text }) => text),
      ['docker.io/evil/**', 'docker.io/x', 'nosuch.io/x'],
    );
    assert.deepEqual(config.unmatchedPatterns, ['deny[2]']);
  });

  test('comments and trailing commas may stand in the file', () => {
    writeFileSync(
      join(directory, 'commented.json'),
      '\uFEFF{\n  // where\n  "listen": "127.0.0.1:5999", /* and */\n  "deny": ["docker.io/evil/**",],\n}\n',
    );
    const config = loadConfig({ file: 'commented.json', env: {}, directory });
    assert.equal(config.listen.port, 5999);
    assert.equal(config.deny.length, 1);
  });

  test('a syntax error is shown where it stands, without secrets', () => {
    const shown = (content: string): string => {
      writeFileSync(join(directory, 'wrong.json'), content);
      try {
        loadConfig({ file: 'wrong.json', env: {}, directory });
      } catch (error) {
        return (error as Error).message;
      }
      return 'it was read';
    };
    assert.equal(
      shown('{\n  "listen": "0.0.0.0:5000"\n  "log": { "level": "info" }\n}'),
      [
        'wrong.json cannot be used:',
        '  line 3, column 3: not JSON: comma expected',
        '      "log": { "level": "info" }',
        '      ^',
      ].join('\n'),
    );
    for (const content of [
      `{ "accounts": [{ "username": "u" "password": "s3cret" }] }`,
      `{ "adminToken": 's3cret' }`,
      `{ "password": s3cret }`,
      `{ "password": "a\\qs3cret" }`,
      `{ "password":\n"s3cret" "x": 1 }`,
      `{ "proxy": "http://me:s3cret@proxy:1" "x": 1 }`,
      `{ "password": { "value": "x", } "token": "s3cret`,
    ])
      assert.doesNotMatch(shown(content), /s3cret|it was read/, content);
  });

  test('a key that is given twice is refused, and so is __proto__', () => {
    const problemOf = (content: string): string => {
      writeFileSync(join(directory, 'twice.json'), content);
      try {
        loadConfig({ file: 'twice.json', env: {}, directory });
      } catch (error) {
        return (error as Error).message;
      }
      return '';
    };
    assert.match(
      problemOf('{\n  "deny": ["docker.io/x/y"],\n  "deny": []\n}'),
      /line 3, column 3: "deny" is given a second time, expected once/,
    );
    assert.match(problemOf('{ "__proto__": { "listen": "x" } }'), /line 1, column 3: "__proto__" is no key/);
    assert.equal(problemOf('{ "clients": { "groups": [{ "name": "a" }, { "name": "b" }] } }'), '');
  });

  test('a file that was named must be there', () => {
    assert.throws(
      () => loadConfig({ file: 'absent.json', env: {}, directory }),
      /absent\.json cannot be used:\n.*ENOENT/,
    );
  });
});
