/**
 * Thirty clients pull through a real process while upstreams fail, the process is killed and restarted, files are damaged
 * and content is purged, with a cap far below the pulled bytes. Every byte is checked; while no trouble is active, every
 * pull must work. `npm run soak -- --minutes 20 --seed 1`; exit code 1 if anything was wrong.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { ask } from '../support/http.ts';
import { Client, type Surroundings } from './clients.ts';
import { Findings } from './findings.ts';
import { Observer } from './observer.ts';
import { Random } from './random.ts';
import { Subject } from './subject.ts';
import { troubles, type Trouble } from './troubles.ts';
import { World, type Item } from './world.ts';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '20' },
    seed: { type: 'string', default: String(Date.now() % 100_000) },
    clients: { type: 'string', default: '30' },
  },
});
const endsAt = Date.now() + Number(values.minutes) * 60_000;
const random = new Random(Number(values.seed));
/** Breakers probe within a minute. */
const recoveryMs = 90_000;
const calmMs = 8000;

const directory = await mkdtemp(join(tmpdir(), 'layercache-soak-'));
const findings = new Findings();
findings.say(`seed ${values.seed}, in ${directory}`);
const world = await World.start(random);
const subject = await Subject.start(directory, world);
const around: Surroundings = {
  world,
  subject,
  findings,
  calmSince: Infinity,
  damaged: new Map(),
  isOver: false,
};
const observer = new Observer(around);
const clients = Array.from(
  { length: Number(values.clients) },
  (_, i) => new Client(around, new Random(Number(values.seed) * 1000 + i), i % 6 === 5),
);
const running = Promise.all([...clients.map((client) => client.run()), observer.run()]);

/** Whether an image that was never pulled can be pulled. */
async function works(item: Item): Promise<boolean> {
  const { manifest, images } = item.versions[0]!;
  const paths = [`manifests/${manifest.digest}`, `blobs/${images[0]!.config.digest}`];
  for (const path of paths) {
    const url = `${subject.url}/v2/${item.repo}/${path}?ns=${item.ns}`;
    const reply = await ask(url).catch(() => undefined);
    if (reply?.status !== 200) return false;
  }
  return true;
}

async function settle(): Promise<void> {
  const started = Date.now();
  for (const upstream of world.upstreams)
    for (let i = 0; !(await works(world.probe(upstream))); i++) {
      if (Date.now() - started > recoveryMs) {
        findings.add(`no cold pull works ${recoveryMs} ms after the trouble ended`);
        break;
      }
      await sleep(1000);
    }
  // Requests from the time of the trouble may still fail.
  await sleep(2000);
  findings.count('recoveries');
}

async function calm(ms: number): Promise<void> {
  findings.phase += ', calm again';
  around.calmSince = Date.now();
  await sleep(ms);
  around.calmSince = Infinity;
}

await settle();
await calm(calmMs);
let queue: Trouble[] = [];
while (Date.now() < endsAt) {
  if (queue.length === 0) queue = random.shuffled(troubles(around, random));
  const trouble = queue.pop()!;
  findings.phase = trouble.name;
  await trouble.run();
  const ended = Date.now();
  await settle();
  findings.say(
    `${trouble.name}: settled after ${((Date.now() - ended) / 1000).toFixed(1)} s; ${observer.summary()}`,
  );
  world.push(random.zipf(world.items));
  await calm(calmMs);
}

findings.phase = 'at rest';
around.isOver = true;
await running;
await sleep(15_000);
await observer.look();
await observer.atRest();
const code = await subject.stop();
if (code !== 0) findings.add(`the last SIGTERM: exit code ${String(code)}`);
await world.stop();
findings.say(
  [...findings.counts]
    .sort()
    .map(([what, count]) => `${what}: ${count}`)
    .join('\n'),
);
findings.say(observer.summary());
findings.say(
  findings.wrong.length === 0
    ? 'nothing was wrong'
    : `${findings.wrong.length} things were wrong; kept: ${directory}`,
);
if (findings.wrong.length === 0) await rm(directory, { recursive: true });
else process.exitCode = 1;
