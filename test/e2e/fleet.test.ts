import assert from 'node:assert/strict';
import { Agent, request } from 'node:http';
import { test } from 'node:test';
import { imageOf } from '../support/images.ts';
import { TestMirror } from '../support/mirror.ts';
import { Upstream, type Script } from '../support/upstream.ts';

const nodes = 500;
const tags = 300;
const stepMs = 60_000;
const daySteps = 24 * 60;
const windowSteps = 6 * 60;
const limit = 100;

/** The same numbers in every run. */
function randomly(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** A registry that counts as Docker Hub does: 100 pulls in six hours, all given back at the window's end. */
class Hub {
  left = limit;
  /** Manifests that were given. */
  readonly given: string[] = [];
  /** Refused, by window. */
  readonly refused: number[] = [];

  script(window: () => number): Script {
    return (call, _req, res, next) => {
      const isPull = call.method === 'GET';
      if (isPull && this.left === 0) {
        this.refused[window()] = (this.refused[window()] ?? 0) + 1;
        this.#tell(res);
        res
          .writeHead(429, { 'content-type': 'application/json' })
          .end('{"errors":[{"code":"TOOMANYREQUESTS"}]}');
        return;
      }
      if (isPull) {
        this.left -= 1;
        this.given.push(call.reference);
      }
      this.#tell(res);
      next();
    };
  }

  #tell(res: Parameters<Script>[2]): void {
    res.setHeader('ratelimit-limit', `${limit};w=21600`);
    res.setHeader('ratelimit-remaining', `${this.left};w=21600`);
  }
}

test('a day of 500 nodes that pull 300 moving tags through one anonymous account', async (t) => {
  const upstream = await Upstream.start({ auth: 'bearer' });
  const mirror = await TestMirror.start({ upstream: upstream.url, config: { log: { level: 'error' } } });
  const agent = new Agent({ keepAlive: true, maxSockets: 32 });
  t.after(async () => {
    agent.destroy();
    await mirror.close();
    await upstream.stop();
  });
  const random = randomly(1);
  const move = (tag: number): void => upstream.addManifest('library/x', imageOf([]).manifest, `t${tag}`);
  for (let tag = 0; tag < tags; tag++) move(tag);
  const hub = new Hub();
  let step = 0;
  upstream.script(
    'manifest',
    hub.script(() => Math.floor(step / windowSteps)),
  );

  // A few tags are pulled all the time and many rarely; a tenth move every other hour, the rest once in a few days.
  const popular = (): number => Math.floor(tags * random() ** 3);
  const moveChance = (tag: number): number => (tag % 10 === 0 ? 1 / 120 : 1 / (3 * daySteps));
  const pullsOfNodeInADay = 24;
  const held = new Set<number>();
  const askingEach = { pulls: 0, left: limit, refused: 0 };
  let served = 0;
  let cachedFailures = 0;
  for (step = 0; step < daySteps; step++) {
    mirror.clock.advance(stepMs);
    if (step % windowSteps === 0) askingEach.left = hub.left = limit;
    for (let tag = 0; tag < tags; tag++) if (random() < moveChance(tag)) move(tag);
    const pulls: number[] = [];
    for (let node = 0; node < nodes; node++)
      if (random() < pullsOfNodeInADay / daySteps) pulls.push(popular());
    const statuses = await Promise.all(
      pulls.map((tag) => pull(`${mirror.url}/v2/library/x/manifests/t${tag}`)),
    );
    statuses.forEach((status, i) => {
      const tag = pulls[i]!;
      if (status === 200) {
        served += 1;
        held.add(tag);
      } else if (held.has(tag)) cachedFailures += 1;
      else assert.equal(status, 429);
      askingEach.pulls += 1;
      if (askingEach.left > 0) askingEach.left -= 1;
      else askingEach.refused += 1;
    });
  }

  assert.equal(cachedFailures, 0);
  hub.refused.forEach((refused) => assert.ok(refused <= 1));
  assert.equal(hub.given.length, new Set(hub.given).size, 'no manifest is fetched twice');
  const spent = await mirror.metric('layercache_ledger{registry="docker.io",item="upstream_pulls"}');
  assert.equal(spent, hub.given.length);
  const asked = await mirror.metric('layercache_ledger{registry="docker.io",item="client_pulls"}');
  assert.equal(asked, served);
  // The same day through a mirror that asks for each pull.
  assert.ok(askingEach.refused > 0.9 * askingEach.pulls);
  assert.ok(served > 0.8 * askingEach.pulls, `${served} of ${askingEach.pulls}`);
  t.diagnostic(
    `${askingEach.pulls} pulls: ${spent} spent, ${served} served; asking each time: ${askingEach.refused} refused`,
  );

  function pull(url: string): Promise<number> {
    return new Promise((resolve, reject) => {
      request(url, { agent }, (res) => {
        res.resume();
        res.on('end', () => resolve(res.statusCode ?? 0));
      })
        .on('error', reject)
        .end();
    });
  }
});
