import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { NetworkPolicy, reachOf } from '../../../../src/upstream/http/network-policy.ts';
import { isFault } from '../../../../src/util/errors.ts';

const refused = (error: unknown): boolean => isFault(error, 'address-refused');

describe('network policy', () => {
  const reaches = {
    public: ['8.8.8.8', '2606:4700::1111', '::ffff:8.8.8.8', '64:ff9b::808:808'],
    private: [
      '127.0.0.1',
      '10.1.2.3',
      '172.16.0.1',
      '192.168.1.1',
      '100.64.0.1',
      '::1',
      'fd00::1',
      '::ffff:10.0.0.1',
      '64:ff9b::a00:1',
      '64:ff9b:1::a00:1',
      '64:ff9b:1::808:808',
    ],
    forbidden: [
      ...[
        '169.254.169.254',
        '0.0.0.0',
        '255.255.255.255',
        '224.0.0.1',
        '::',
        'fe80::1',
        'ff02::1',
        'fd00:ec2::254',
      ],
      ...[
        '::ffff:169.254.169.254',
        '64:ff9b::a9fe:a9fe',
        '100.100.100.200',
        '2002:a9fe:a9fe::1',
        '::a9fe:a9fe',
        '::7f00:1',
        '168.63.129.16',
        '192.0.2.1',
        'nonsense',
        '',
      ],
    ],
  };
  for (const [reach, addresses] of Object.entries(reaches)) {
    for (const address of addresses)
      test(`${address} is ${reach}`, () => assert.equal(reachOf(address), reach));
  }

  const hub = new NetworkPolicy({
    url: new URL('https://registry-1.docker.io'),
    allowPrivateNetwork: false,
    realms: ['https://auth.elsewhere.example/v1/'],
  });
  const local = new NetworkPolicy({
    url: new URL('http://127.0.0.1:5000'),
    allowPrivateNetwork: false,
    realms: [],
  });

  for (const realm of [
    'https://auth.docker.io/token',
    'https://registry-1.docker.io/t',
    'https://auth.elsewhere.example/v1/token',
  ]) {
    test(`${realm} is a realm of Docker Hub`, () => assert.equal(hub.checkRealm(realm).href, realm));
  }
  for (const realm of [
    ...[
      'https://evil.example/token',
      'https://docker.io.evil.example/',
      'https://auth.elsewhere.example/v2/',
      'http://auth.docker.io/token',
    ],
    ...[
      'https://169.254.169.254/',
      'https://localhost/',
      'https://u:p@auth.docker.io/',
      'https://auth.docker.io:22/',
      'file:///x',
      '/token',
      '',
    ],
  ]) {
    test(`${realm || 'nothing'} is no realm of Docker Hub`, () =>
      assert.throws(() => hub.checkRealm(realm), refused));
  }
  test('a private upstream has its realm on its own host, on any port', () => {
    assert.equal(local.checkRealm('http://127.0.0.1:9/token').port, '9');
    assert.throws(() => local.checkRealm('http://127.0.0.2:9/token'), refused);
  });

  const from = new URL('https://registry-1.docker.io/v2/');
  for (const to of ['https://cdn.example/x', 'https://cdn.example:443/x']) {
    test(`a redirect to ${to}`, () => assert.doesNotThrow(() => hub.checkRedirect(from, new URL(to))));
  }
  for (const to of [
    'http://cdn.example/x',
    'https://cdn.example:8443/',
    'https://10.0.0.1/',
    'https://[::1]/',
    'https://2130706433/',
    'https://u@cdn.example/',
    'ftp://cdn.example/',
  ]) {
    test(`no redirect to ${to}`, () => assert.throws(() => hub.checkRedirect(from, new URL(to)), refused));
  }

  test('plain http is for the own network only', () => {
    const policy = (url: string, allowPrivateNetwork = false) =>
      new NetworkPolicy({ url: new URL(url), allowPrivateNetwork, realms: [] });
    assert.throws(() => policy('http://registry.example.com'), refused);
    for (const url of [
      'http://localhost:5000',
      'http://registry:5000',
      'http://[::1]:5000',
      'http://10.0.0.5',
    ])
      policy(url);
    policy('http://registry.example.com', true);
  });

  test('a name that leads into the own network is refused when connecting', async () => {
    const connect = hub.connector(1000);
    const error = await new Promise((resolve) => {
      connect({ hostname: 'localhost', host: 'localhost', protocol: 'https:', port: '443' }, (...[failure]) =>
        resolve(failure),
      );
    });
    assert.ok(refused(error), String(error));
  });
});
