/**
 * Throws made-up and mutated input at everything that reads what clients and upstreams send: nothing may be thrown but a
 * fault, nothing may take long, and what comes out must be of its form. `npm run fuzz -- <seconds> [seed]`.
 */
import fc from 'fast-check';
import assert from 'node:assert/strict';
import { RegistryPattern } from '../../src/mirror/registry-pattern.ts';
import { isDigest } from '../../src/oci/digest.ts';
import { checkList, nextPage } from '../../src/oci/list.ts';
import { bareMediaType, ociIndex, parseManifest, recognise } from '../../src/oci/manifest.ts';
import { Pattern } from '../../src/oci/pattern.ts';
import {
  parseContentRange,
  parseRanges,
  parseUnsatisfied,
  resolveWant,
  resolveWants,
  type Want,
} from '../../src/oci/range.ts';
import { createRepo } from '../../src/oci/repo.ts';
import { parseRoute } from '../../src/oci/route.ts';
import { parseHtpasswd } from '../../src/server/htpasswd.ts';
import { parseChallenges } from '../../src/upstream/auth/challenge.ts';
import { parseRetryAfter } from '../../src/upstream/http/headers.ts';
import { NetworkPolicy, reachOf } from '../../src/upstream/http/network-policy.ts';
import { Proxy } from '../../src/upstream/http/proxy.ts';
import { MirrorError } from '../../src/util/errors.ts';
import { isNetwork, Networks } from '../../src/util/networks.ts';
import { parseDuration, parseSize } from '../../src/util/units.ts';

const digest = `sha256:${'0123456789abcdef'.repeat(4)}`;
const policy = new NetworkPolicy({
  url: new URL('https://registry-1.docker.io'),
  allowPrivateNetwork: false,
  realms: [],
});

/** What is read, what it may look like, and what must hold of what comes out. */
const targets: Record<string, { seeds: string[]; read: (text: string) => void }> = {
  route: {
    seeds: [
      `/v2/library/x/manifests/1?ns=docker.io&n=5`,
      `/ghcr.io/v2/a/b/blobs/${digest}`,
      '/v2/a/tags/list',
      '/v2',
    ],
    read: (text) => {
      const route = parseRoute('GET', text);
      if ('digest' in route) assert.ok(isDigest(route.digest));
      if (route.kind !== 'ping') createRepo('docker.io', route.name, 'docker.io');
    },
  },
  range: {
    seeds: ['bytes=0-1', 'bytes=5-,-7, 9-9', 'bytes=99999999999999999999-', 'items=1-2'],
    read: (text) => {
      const asked = parseRanges(text);
      const ranges = Array.isArray(asked)
        ? resolveWants(asked as Want[], 1000)
        : [resolveWant(asked as Want, 1000)].filter((each) => each !== undefined);
      for (const { start, end } of ranges) assert.ok(start >= 0 && start < end && end <= 1000);
      parseContentRange(text);
      parseUnsatisfied(text);
    },
  },
  challenge: {
    seeds: [
      'Bearer realm="https://a/t",service="s",scope="repository:x:pull"',
      'Basic realm=x, Negotiate',
      'a="\\""',
    ],
    read: (text) => {
      for (const { scheme } of parseChallenges(text)) assert.equal(scheme, scheme.toLowerCase());
    },
  },
  link: {
    seeds: [
      '</v2/x/tags/list?n=1&last=a>; rel="next"',
      '<http://u/v2/x/tags/list?a>;rel=next, <b>; rel=prev',
    ],
    read: (text) => {
      const next = nextPage(text, new URL('http://u/v2/x/tags/list?n=1'));
      if (next !== null) assert.match(next, /^[\x21-\x7e]*$/);
    },
  },
  manifest: {
    seeds: [
      `{"schemaVersion":2,"config":{"digest":"${digest}","size":1},"layers":[{"digest":"${digest}","size":2,"urls":["x"]}]}`,
      `{"schemaVersion":2,"mediaType":"${ociIndex}","manifests":[{"digest":"${digest}","size":1}]}`,
      '{"name":"x","tags":["a"]}',
    ],
    read: (text) => {
      const bytes = Buffer.from(text);
      for (const each of recognise(bytes)?.children ?? []) assert.ok(isDigest(each.digest));
      for (const kind of ['tags', 'referrers'] as const) faultless(() => checkList(kind, bytes, 'x'));
      for (const child of parseManifest(bytes, ociIndex, 'x').children)
        assert.ok(isDigest(child.digest) && child.size >= 0);
    },
  },
  realm: {
    seeds: [
      'https://auth.docker.io/token',
      'http://[::ffff:7f00:1]/',
      'https://2130706433/',
      '//x',
      'https://a@b/',
    ],
    read: (text) => {
      const { hostname, protocol } = policy.checkRealm(text);
      assert.ok(protocol === 'https:' && /(?:^|\.)docker\.io$/.test(hostname), hostname);
    },
  },
  address: {
    seeds: ['10.0.0.1', '::ffff:169.254.169.254', '64:ff9b::a00:1', '10.0.0.0/8', '2001:db8::/32'],
    read: (text) => {
      if (/^(?:169\.254\.|0\.|22[4-9]\.)\d+\.\d+/.test(text)) assert.equal(reachOf(text), 'forbidden');
      if (isNetwork(text)) new Networks([text]).contains('10.0.0.1');
      new Proxy({ url: new URL('http://p'), except: text, isFromEnvironment: true }).covers('ghcr.io', '443');
    },
  },
  words: {
    seeds: [
      '90s',
      '512MiB',
      'docker.io/library/*:3*',
      '*.azurecr.io',
      'ada:$2b$10$',
      'Sat, 21 Nov 2026 10:00:00 GMT',
      'a/b',
    ],
    read: (text) => {
      assert.ok((parseDuration(text) ?? 0) >= 0 && (parseSize(text) ?? 0) >= 0);
      Pattern.parse(text)?.matches(createRepo('docker.io', 'library/x', 'docker.io'), '1');
      RegistryPattern.parse(text)?.matches('acme.azurecr.io');
      const retry = parseRetryAfter(text, 0);
      assert.ok(retry === undefined || retry >= 0);
      assert.match(bareMediaType(text) ?? 'a/b', /^[\w.+-]+\/[\w.+-]+$/);
      try {
        parseHtpasswd(text);
      } catch (error) {
        assert.match((error as Error).message, /^line \d+: /);
      }
    },
  },
};

function faultless(read: () => void): void {
  try {
    read();
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error;
  }
}

/** A seed with pieces of it changed, repeated or taken out. */
function mutated(seeds: readonly string[]): fc.Arbitrary<string> {
  const piece = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 8 }),
    fc.constantFrom(...seeds),
    fc.constantFrom(
      '/',
      ':',
      '?',
      '&',
      '=',
      ',',
      '"',
      '<',
      '>',
      '[',
      '{',
      '}',
      '%',
      '\\',
      '\r\n',
      '\0',
      ' ',
      '-',
    ),
  );
  return fc
    .tuple(
      fc.constantFrom(...seeds),
      fc.array(fc.tuple(fc.nat(200), fc.nat(20), piece, fc.integer({ min: 1, max: 50 })), { maxLength: 5 }),
    )
    .map(([seed, changes]) =>
      changes.reduce(
        (text, [at, length, by, times]) => text.slice(0, at) + by.repeat(times) + text.slice(at + length),
        seed,
      ),
    );
}

const [seconds = '10', seed = String(Date.now() % 2 ** 31)] = process.argv.slice(2);
const longestMs = 200;
for (const [name, { seeds, read }] of Object.entries(targets)) {
  let runs = 0;
  fc.assert(
    fc.property(fc.oneof(mutated(seeds), fc.string({ unit: 'binary', maxLength: 5000 })), (text) => {
      runs += 1;
      const started = performance.now();
      faultless(() => read(text));
      const took = performance.now() - started;
      assert.ok(took < longestMs, `${took.toFixed(0)} ms`);
    }),
    {
      seed: Number(seed),
      numRuns: Number.MAX_SAFE_INTEGER,
      interruptAfterTimeLimit: (Number(seconds) * 1000) / Object.keys(targets).length,
    },
  );
  process.stdout.write(`${name}: ${runs} inputs, nothing found\n`);
}
process.stdout.write(`seed ${seed}\n`);
