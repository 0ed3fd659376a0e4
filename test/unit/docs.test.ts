import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { rootCertificates } from 'node:tls';
import { loadConfig } from '../../src/config/load.ts';
import { Authority } from '../support/certificates.ts';
import { missing } from '../support/programs.ts';
import { snippets } from '../support/snippets.ts';

describe('what the documentation shows', { skip: missing('openssl') }, () => {
  let directory: string;
  const env = Object.fromEntries(
    ['HUB_TOKEN', 'GHCR_TOKEN', 'GITLAB_TOKEN', 'NGC_KEY', 'HARBOR_TOKEN'].map((name) => [name, 'x']),
  );

  before(async () => {
    directory = mkdtempSync(join(tmpdir(), 'layercache-docs-'));
    const authority = await Authority.create(directory);
    const { cert, key } = await authority.sign('mirror');
    for (const [name, content] of [
      ['config.json', '{}'],
      ['key.json', '{}'],
      ['registry-password', 'x'],
      ['corp-ca.pem', rootCertificates[0]],
      ['lan-ca.pem', rootCertificates[0]],
    ] as const)
      writeFileSync(join(directory, name), content ?? '');
    for (const helper of ['ecr-login', 'gcloud', 'gcr', 'acr-env'])
      writeFileSync(join(directory, `docker-credential-${helper}`), '', { mode: 0o755 });
    env['PATH'] = directory;
    env['CERT'] = cert;
    env['KEY'] = key;
    env['CLIENT_CA'] = authority.certificate;
  });
  after(() => rmSync(directory, { recursive: true, force: true }));

  for (const page of ['docs/upstreams.md', 'docs/access.md', 'README.md']) {
    const shown = [...snippets(page, 'json'), ...snippets(page, 'jsonc')];
    const isConfig = (text: string): boolean => /"(?:upstreams|clients|tls|store)"/.test(text);
    for (const [i, text] of shown.filter(isConfig).entries()) {
      test(`${page}: configuration ${i + 1} can be used`, () => {
        const json = text
          .replace(/^\s*\/\/.*$/gm, '')
          .replace(/\s\/\/ .*$/gm, '')
          .replace(/,(\s*[}\]])/g, '$1')
          .replace('"mirror.pem"', JSON.stringify(env['CERT']))
          .replace('"mirror.key"', JSON.stringify(env['KEY']))
          .replace('"clients-ca.pem"', JSON.stringify(env['CLIENT_CA']));
        const file = join(directory, 'mirror.config.json');
        writeFileSync(file, json);
        assert.ok(loadConfig({ file, env, directory }).upstreams.length > 0);
      });
    }
  }
});
