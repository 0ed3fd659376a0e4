import { open, rm, stat, truncate } from 'node:fs/promises';
import { basename } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { sendBlob, type BodyOptions } from '../support/bodies.ts';
import type { Kind, Script, Upstream } from '../support/upstream.ts';
import type { Surroundings } from './clients.ts';
import type { Random } from './random.ts';
import type { Item, World } from './world.ts';

/** Temporary failures of upstreams. */
const answers: Readonly<
  Record<string, (random: Random, upstream: Upstream, world: World) => [kinds: Kind[], script: Script][]>
> = {
  'answers 500': () => [[['manifest', 'blob', 'cdn'], status(500)]],
  'answers 503': () => [[['manifest', 'blob', 'cdn', 'token'], status(503, { 'retry-after': '2' })]],
  'answers 429 without figures': () => [[['manifest'], status(429, { 'retry-after': '2' })]],
  'its token server fails': () => [[['token'], status(500)]],
  'its CDN refuses': () => [[['cdn'], status(403)]],
  'cuts bodies': (random, upstream) => bodies(upstream, () => ({ cutAfter: random.between(0, 500_000) })),
  'stalls in bodies': (random, upstream) =>
    bodies(upstream, () => ({ stallAfter: random.between(0, 500_000) })),
  'drips bodies': (random, upstream) =>
    bodies(upstream, () => ({ bytesPerSecond: random.between(100_000, 500_000) })),
  'ignores ranges': (_, upstream) => bodies(upstream, () => ({ ignoresRange: true })),
  'answers late': (random) => [
    [
      ['manifest', 'blob', 'cdn', 'token', 'tags'],
      async (_call, _req, _res, next) => {
        await sleep(random.between(0, 3500));
        next();
      },
    ],
  ],
  'says nothing': () => [[['manifest', 'blob', 'cdn', 'token'], () => undefined]],
  'resets connections': () => [
    [
      ['manifest', 'blob', 'cdn', 'token'],
      (_call, req) => {
        req.socket.destroy();
      },
    ],
  ],
  'falsifies blobs': (random, upstream) =>
    bodies(upstream, (bytes) => {
      const other = Buffer.from(bytes);
      const at = random.between(0, other.length);
      other[at] = (other[at] ?? 0) ^ 0x10;
      return { bytes: other };
    }),
  'falsifies manifests': (_, _upstream, world) => [
    [
      ['manifest'],
      (call, _req, res, next) => {
        const bytes = world.content.get(call.reference);
        if (!bytes) next();
        else
          res
            .writeHead(200, { 'content-type': 'application/vnd.oci.image.manifest.v1+json' })
            .end(`${bytes.toString()} `);
      },
    ],
  ],
};

function status(code: number, headers: Record<string, string> = {}): Script {
  return (_call, _req, res) => {
    res.writeHead(code, { 'content-type': 'application/json', ...headers });
    res.end('{"errors":[{"code":"UNKNOWN","message":"trouble"}]}');
  };
}

function bodies(upstream: Upstream, options: (bytes: Buffer) => BodyOptions): [Kind[], Script][] {
  const script: Script = (call, req, res, next) => {
    const blob = upstream.blob(call.repo, call.reference);
    const answer: Script =
      !blob || call.method !== 'GET' ? () => next() : sendBlob(blob, options(blob.bytes));
    return answer(call, req, res, next);
  };
  return [[['cdn', 'blob'], script]];
}

export interface Trouble {
  readonly name: string;
  run(): Promise<void>;
}

/** All kinds of trouble. */
export function troubles(around: Surroundings, random: Random): Trouble[] {
  const { world } = around;
  const ofUpstreams = Object.entries(answers).map(([name, of]) => ({
    name: `an upstream ${name}`,
    run: () =>
      forAWhile(world, random, (upstream) => {
        for (const [kinds, script] of of(random, upstream, world))
          // Blobs of the hub come from its CDN: its redirects stay correct.
          for (const kind of kinds)
            if (kind !== 'blob' || upstream !== world.hub) upstream.script(kind, script);
      }),
  }));
  return [...ofUpstreams, ...events(around, random)];
}

async function forAWhile(world: World, random: Random, begin: (upstream: Upstream) => void): Promise<void> {
  const ill = random.next() < 0.5 ? world.upstreams : [random.of(world.upstreams)];
  for (const upstream of ill) begin(upstream);
  await sleep(random.between(4000, 9000));
  for (const upstream of ill) upstream.behave();
}

function events(around: Surroundings, random: Random): Trouble[] {
  const { world, subject, findings } = around;
  const ofItem = (item: Item): string => `${item.ns}/${item.repo}`;
  return [
    {
      name: 'upstreams are down',
      async run() {
        const down = random.next() < 0.5 ? world.upstreams : [random.of(world.upstreams)];
        await Promise.all(down.map((upstream) => upstream.stop()));
        await sleep(random.between(4000, 9000));
        await Promise.all(down.map((upstream) => upstream.resume()));
      },
    },
    {
      name: 'kill -9',
      async run() {
        await subject.kill();
        await subject.start();
      },
    },
    {
      name: 'kill -9, and damage to what was unfinished',
      async run() {
        await subject.kill();
        for (const { path } of await subject.files('ingest')) await flip(path, random);
        await subject.start();
      },
    },
    {
      name: 'SIGTERM',
      async run() {
        const code = await subject.stop();
        if (code !== 0) findings.add(`SIGTERM: exit code ${String(code)}`);
        await subject.start();
      },
    },
    { name: 'SIGHUP', run: () => subject.reload() },
    {
      name: 'flipped bits in stored blobs',
      async run() {
        for (const { path } of random.shuffled(await subject.files('blobs')).slice(0, 3)) {
          around.damaged.set(digestOf(path), Date.now());
          await flip(path, random);
        }
      },
    },
    {
      name: 'stored files are gone or cut',
      async run() {
        const [gone, cut] = random.shuffled(await subject.files('blobs'));
        if (gone) await rm(gone.path, { force: true });
        if (cut) await truncate(cut.path, random.between(0, cut.size)).catch(() => undefined);
        // Current readers get the truncated file.
        for (const file of [gone, cut]) if (file) around.damaged.set(digestOf(file.path), Date.now());
      },
    },
    {
      name: 'purge',
      async run() {
        for (let i = 0; i < 5; i++)
          await subject.operate('purge', { pattern: ofItem(random.zipf(world.items)) });
      },
    },
    {
      name: 'pin and unpin',
      async run() {
        const pattern = ofItem(random.zipf(world.items));
        await subject.operate('pin', { pattern });
        await sleep(5000);
        await subject.operate('unpin', { pattern });
      },
    },
    {
      name: 'store verify beside the mirror',
      async run() {
        const { damaged } = JSON.parse(await subject.command('verify', '--json')) as {
          damaged: { digest: string }[];
        };
        for (const { digest } of damaged)
          if (!around.damaged.has(digest)) findings.add(`verify found ${digest}, which nobody has damaged`);
      },
    },
    {
      name: 'many tags are moved',
      run() {
        for (let i = 0; i < 10; i++) world.push(random.zipf(world.items));
        return Promise.resolve();
      },
    },
  ];
}

function digestOf(path: string): string {
  return `sha256:${basename(path)}`;
}

async function flip(path: string, random: Random): Promise<void> {
  try {
    const { size } = await stat(path);
    if (size === 0) return;
    const file = await open(path, 'r+');
    const at = random.between(0, size);
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, at);
    await file.write(Buffer.from([(byte[0] ?? 0) ^ 0x10]), 0, 1, at);
    await file.close();
  } catch (error) {
    // Evicted meanwhile.
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}
