import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { bareMediaType, parseManifest, recognise, unnamedType } from '../../../src/oci/manifest.ts';
import { isFault } from '../../../src/util/errors.ts';
import { ociIndex, ociManifest } from '../../support/images.ts';

const digest = (letter: string): string => `sha256:${letter.repeat(64)}`;
const bytes = (json: unknown): Buffer => Buffer.from(JSON.stringify(json));

describe('manifest', () => {
  test('an image has a config and layers, of which foreign ones come from elsewhere', () => {
    const body = {
      schemaVersion: 2,
      config: { digest: digest('a'), size: 1 },
      layers: [
        { digest: digest('b'), size: 2 },
        { digest: digest('c'), size: 3, urls: ['https://elsewhere.example/c'] },
        {
          digest: digest('d'),
          size: 4,
          mediaType: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
        },
      ],
    };
    assert.deepEqual(parseManifest(bytes(body), ociManifest, 'x').children, [
      { digest: digest('a'), size: 1, kind: 'config', foreign: false },
      { digest: digest('b'), size: 2, kind: 'layer', foreign: false },
      { digest: digest('c'), size: 3, kind: 'layer', foreign: true },
      { digest: digest('d'), size: 4, kind: 'layer', foreign: true },
    ]);
  });

  test('an index has manifests, also none', () => {
    const body = { schemaVersion: 2, mediaType: ociIndex, manifests: [{ digest: digest('a'), size: 1 }] };
    assert.deepEqual(parseManifest(bytes(body), ociIndex, 'x').children, [
      { digest: digest('a'), size: 1, kind: 'manifest', foreign: false },
    ]);
    assert.deepEqual(parseManifest(bytes({ manifests: [] }), ociIndex, 'x').children, []);
  });

  test('a type that nobody knows is any JSON object', () => {
    const read = parseManifest(bytes({ layers: 'what?' }), 'application/vnd.example+json', 'x');
    assert.deepEqual(read, { mediaType: unnamedType, children: [] });
  });

  test('type and parts are what the bytes say, however they came', () => {
    const parts = [{ digest: digest('a'), size: 1, kind: 'manifest', foreign: false }];
    const manifests = [
      { digest: digest('a'), size: 1 },
      { digest: digest('a'), size: 1 },
    ];
    for (const type of ['application/vnd.example+json', 'application/octet-stream', 'text/plain']) {
      const named = parseManifest(bytes({ mediaType: ociIndex, manifests }), type, 'x');
      assert.deepEqual(named, { mediaType: ociIndex, children: parts }, type);
      const unnamed = parseManifest(bytes({ manifests }), type, 'x');
      assert.deepEqual(unnamed, { mediaType: unnamedType, children: parts }, type);
    }
    const blob = { mediaType: 'application/octet-stream', manifests };
    assert.equal(parseManifest(bytes(blob), 'application/vnd.example+json', 'x').mediaType, unnamedType);
  });

  test('of bytes that came from nowhere images and indexes are told from other JSON', () => {
    assert.equal(recognise(bytes({ mediaType: ociIndex, manifests: [] }))?.mediaType, ociIndex);
    assert.equal(recognise(bytes({ manifests: [] }))?.mediaType, unnamedType);
    for (const other of [{ architecture: 'amd64' }, { config: 1 }, { manifests: [], layers: [] }, [1]])
      assert.equal(recognise(bytes(other)), undefined, JSON.stringify(other));
  });

  const refused: [title: string, body: unknown, type: string][] = [
    ['another type than its header', { mediaType: ociIndex, config: {}, layers: [] }, ociManifest],
    ['two types at once', { manifests: [], layers: [] }, ociIndex],
    ['an index without manifests', { schemaVersion: 2 }, ociIndex],
    ['an image without layers', { config: { digest: digest('a'), size: 1 } }, ociManifest],
    ['a negative size', { config: { digest: digest('a'), size: -1 }, layers: [] }, ociManifest],
    ['a list', [1], 'application/vnd.example+json'],
    ['nothing', {}, 'application/vnd.example+json'],
    ['a web page', {}, 'text/html'],
    ['schema 1', { schemaVersion: 1 }, 'application/vnd.docker.distribution.manifest.v1+json'],
  ];
  for (const [title, body, type] of refused) {
    test(`${title} is refused`, () => {
      assert.throws(
        () => parseManifest(bytes(body), type, 'x'),
        (error) => isFault(error, 'upstream-invalid'),
      );
    });
  }

  test('media types are bare, and fit into a header', () => {
    assert.equal(bareMediaType('Application/JSON; charset=utf-8'), 'application/json');
    for (const bad of [undefined, '', 'json', 'a/b\r\nX: y', 'a b/c', `a/${'b'.repeat(300)}`]) {
      assert.equal(bareMediaType(bad), undefined);
    }
  });
});
