import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { createRepo } from '../../../src/oci/repo.ts';
import { createRegistryHandler, type RegistryContext } from '../../../src/server/registry-routes.ts';
import { Ledger } from '../../../src/telemetry/ledger.ts';
import { createLog } from '../../../src/telemetry/log.ts';
import { Metrics } from '../../../src/telemetry/metrics.ts';
import { ask, errorOf } from '../../support/http.ts';
import { TestClock, until } from '../../support/mirror.ts';

const noLedgerStore = {
  add: () => undefined,
  prune: () => undefined,
  totals: () => [],
};

test('requests beyond what the process can hold get 503 and when to come again', async () => {
  const { promise: held, resolve: go } = Promise.withResolvers<undefined>();
  let asked = 0;
  const log = createLog({ level: 'info' }, { sink: { write: () => true } });
  const clock = new TestClock();
  const context = {
    mirror: {
      manifest: async () => {
        asked += 1;
        await held;
        return { digest: `sha256:${'0'.repeat(64)}`, mediaType: 'x/y', size: 1, result: 'hit' };
      },
    },
    upstreams: {
      repo: (name: string) => createRepo('docker.io', name, 'docker.io'),
      pullsLeft: () => undefined,
    },
    clock,
    log,
    metrics: new Metrics(),
    ledger: new Ledger(clock, noLedgerStore, () => undefined),
    isDraining: () => false,
    clients: { addressOf: () => 'x', admit: () => ({ address: 'x' }), authorize: () => undefined },
    whenSpent: () => 429,
    maxRequests: 2,
  } as unknown as RegistryContext;
  const handler = createRegistryHandler(context);
  const server = createServer((req, res) => void handler(req, res)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v2/x/manifests/1`;
  const first = [ask(url, { method: 'HEAD' }), ask(url, { method: 'HEAD' })];
  await until(() => asked === 2, 'two are being answered');
  const refused = await ask(url);
  assert.equal(refused.status, 503);
  assert.equal(refused.headers['retry-after'], '1');
  assert.equal(errorOf(refused).code, 'UNAVAILABLE');
  go(undefined);
  for (const reply of await Promise.all(first)) assert.equal(reply.status, 200);
  assert.equal((await ask(url, { method: 'HEAD' })).status, 200);
  server.close();
  await log.close();
});
