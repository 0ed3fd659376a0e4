import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, get as httpGet, type IncomingMessage } from 'node:http';
import { availableParallelism, cpus, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { format, resolveConfig } from 'prettier';
import { systems, versionOf, type Running, type System } from './systems.ts';

/**
 * `npm run bench` compares Layercache with nginx and docker-registry, if installed, against one upstream. `--write` writes
 * the table to docs/benchmarks.md; other arguments select the cases whose names contain them.
 */

const runs = 3;
const MB = 1_000_000;
const run = promisify(execFile);
const scratch = join(tmpdir(), `layercache-bench-${process.pid}`);
const document = join(import.meta.dirname, '../docs/benchmarks.md');

interface Upstream {
  readonly url: string;
  readonly layers: readonly string[];
  readonly config: string;
  readonly manifest: string;
  /** Traffic since the last call. */
  stats(): Promise<{ bytes: number; requests: number }>;
  stop(): Promise<void>;
}

/** Results of one system in one run, by name. */
type Figures = Readonly<Record<string, number>>;

interface Case {
  readonly what: string;
  readonly client: string;
  readonly upstream: 'fast' | 'slow';
  /** `nth`: number of the run; cold cases use another blob each time. */
  readonly measure: (system: Running, upstream: Upstream, nth: number) => Promise<Figures>;
  /** The figure to compare, and whether higher is better. */
  readonly main: string;
  readonly more: boolean;
}

const cases: readonly Case[] = [
  {
    what: 'cold blob of 512 MB',
    client: 'curl',
    upstream: 'fast',
    main: 'MB/s',
    more: true,
    measure: (system, upstream, nth) => pull(system, upstream, nth, 1),
  },
  {
    what: 'warm blob of 512 MB',
    client: 'curl',
    upstream: 'fast',
    main: 'MB/s',
    more: true,
    measure: async (system, upstream, nth) => {
      await curl(blobUrl(system, upstream, nth));
      await settle();
      const { 'CPU s/GB': cpu = 0, 'MB/s': rate = 0 } = await pull(system, upstream, nth, 1);
      return { 'MB/s': rate, 'CPU s/GB': cpu };
    },
  },
  ...[16, 64].map((count): Case => ({
    what: `cold blob of 512 MB, ${count} clients at once`,
    client: `${count} x curl`,
    upstream: 'fast',
    main: 's',
    more: false,
    measure: (system, upstream, nth) => pull(system, upstream, nth, count),
  })),
  ...(['tag', 'digest'] as const).map((by): Case => ({
    what: `cached manifest by ${by}`,
    client: 'wrk -t1 -c16',
    upstream: 'fast',
    main: 'requests/s',
    more: true,
    measure: (system, upstream) => manifests(system, by === 'tag' ? 'latest' : upstream.manifest),
  })),
  {
    what: 'cold image of 8 layers, 50 ms and 20 MB/s a connection',
    client: '3 layers at a time',
    upstream: 'slow',
    main: 's',
    more: false,
    measure: pullImage,
  },
  {
    what: 'cold blob of 256 MB, 50 ms and 20 MB/s a connection',
    client: 'curl',
    upstream: 'slow',
    main: 's',
    more: false,
    measure: (system, upstream) => timed(upstream, 1, () => curl(blobUrl(system, upstream, 8)), 256 * MB),
  },
  {
    what: '1 MB from the end of a cold blob of 256 MB, 50 ms and 20 MB/s a connection',
    client: 'curl -r',
    upstream: 'slow',
    main: 's',
    more: false,
    measure: (system, upstream) =>
      timed(upstream, 1, () => curl(blobUrl(system, upstream, 8), '-r', `${255 * MB}-`), MB),
  },
];

const layersOfImage = 8;
const coldSizes = Array.from({ length: runs }, () => 512 * MB);
const slowSizes = [...Array.from({ length: layersOfImage }, (_, i) => (i + 2) * MB), 256 * MB];

function blobUrl(system: Running, { layers }: Upstream, nth: number): string {
  return `${system.url}/v2/library/bench/blobs/${layers[nth] ?? ''}`;
}

async function curl(url: string, ...options: string[]): Promise<void> {
  await run('curl', ['-fsS', '-o', '/dev/null', ...options, url]);
}

/** Waits for pending disk writes, so that they do not slow the next measurement. */
async function settle(): Promise<void> {
  await run('sync');
}

async function timed(
  upstream: Upstream,
  clients: number,
  work: () => Promise<unknown>,
  bytes: number,
): Promise<Figures> {
  await upstream.stats();
  const started = performance.now();
  await work();
  const seconds = (performance.now() - started) / 1000;
  const { bytes: fetched } = await upstream.stats();
  return { s: seconds, 'MB/s': (clients * bytes) / MB / seconds, 'upstream ratio': fetched / bytes };
}

async function pull(system: Running, upstream: Upstream, nth: number, clients: number): Promise<Figures> {
  const bytes = 512 * MB;
  const before = system.cpuSeconds();
  system.forgetPeak();
  const url = blobUrl(system, upstream, nth);
  const figures = await timed(
    upstream,
    clients,
    () => Promise.all(Array.from({ length: clients }, () => curl(url))),
    bytes,
  );
  return {
    ...figures,
    'CPU s/GB': (system.cpuSeconds() - before) / ((clients * bytes) / 1e9),
    'peak MB': system.peakBytes() / MB,
  };
}

async function manifests(system: Running, reference: string): Promise<Figures> {
  const url = `${system.url}/v2/library/bench/manifests/${reference}`;
  await curl(url, '-H', 'Accept: application/vnd.oci.image.manifest.v1+json');
  const { stdout } = await run('wrk', ['-t1', '-c16', '-d4', url]);
  return { 'requests/s': Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)?.[1]) };
}

/** Pulls as dockerd does: the manifest, then config and layers, three at a time. */
async function pullImage(system: Running, upstream: Upstream): Promise<Figures> {
  const agent = new Agent({ keepAlive: true });
  const base = `${system.url}/v2/library/bench`;
  const layers = upstream.layers.slice(0, layersOfImage);
  const figures = await timed(
    upstream,
    1,
    async () => {
      await drain(`${base}/manifests/latest`, agent);
      const queue = [...layers];
      const worker = async (): Promise<void> => {
        for (let digest = queue.shift(); digest; digest = queue.shift())
          await drain(`${base}/blobs/${digest}`, agent);
      };
      await Promise.all([drain(`${base}/blobs/${upstream.config}`, agent), worker(), worker(), worker()]);
    },
    slowSizes.slice(0, layersOfImage).reduce((sum, size) => sum + size, 0),
  );
  agent.destroy();
  return figures;
}

async function drain(url: string, agent: Agent): Promise<void> {
  const accept = 'application/vnd.oci.image.manifest.v1+json';
  const [response] = (await once(httpGet(url, { agent, headers: { accept } }), 'response')) as [
    IncomingMessage,
  ];
  response.resume();
  await once(response, 'end');
  if (response.statusCode !== 200) throw new Error(`${url}: ${response.statusCode}`);
}

async function startUpstream(options: object): Promise<Upstream> {
  const program = join(import.meta.dirname, 'upstream.ts');
  const child = spawn(process.execPath, [program, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const { port, ...rest } = JSON.parse(line.toString()) as { port: number } & Omit<Upstream, 'url' | 'stats'>;
  const url = `http://127.0.0.1:${port}`;
  return {
    ...rest,
    url,
    stats: async () => (await fetch(`${url}/stats`)).json() as Promise<{ bytes: number; requests: number }>,
    stop: async () => {
      child.kill();
      await once(child, 'close');
    },
  };
}

interface Row {
  readonly each: Case;
  readonly system: System;
  readonly figures: Figures;
}

/** Runs the systems alternately, so that noise of the machine affects all of them. */
async function measure(each: Case, all: readonly System[], upstream: Upstream): Promise<Row[]> {
  const results = all.map((): Figures[] => []);
  for (let nth = 0; nth < runs; nth++) {
    for (const [i, system] of all.entries()) {
      await settle();
      const running = await system.start(upstream.url, join(scratch, 'mirror'));
      try {
        results[i]?.push(await each.measure(running, upstream, nth));
      } finally {
        await running.stop();
      }
    }
  }
  return all.map((system, i) => ({ each, system, figures: medians(results[i] ?? []) }));
}

function medians(results: readonly Figures[]): Figures {
  const names = Object.keys(results[0] ?? {});
  return Object.fromEntries(
    names.map((name) => {
      const sorted = results.map((figures) => figures[name] ?? NaN).sort((a, b) => a - b);
      return [name, sorted[Math.floor(sorted.length / 2)] ?? NaN];
    }),
  );
}

function table(rows: readonly Row[]): string {
  const lines = ['| what | client | system | result | of Layercache’s | CPU s/GB | upstream | peak MB |'];
  lines.push('| --- | --- | --- | --- | --- | --- | --- | --- |');
  for (const { each, system, figures } of rows) {
    const ours = rows.find((row) => row.each === each)?.figures[each.main] ?? NaN;
    const value = figures[each.main] ?? NaN;
    const ratio = each.more ? ours / value : value / ours;
    const show = (name: string, digits: number): string => figures[name]?.toFixed(digits) ?? '';
    const better = system.name === 'Layercache' ? '' : `${ratio.toFixed(2)} x`;
    lines.push(
      `| ${each.what} | ${each.client} | ${system.name} | ${value.toFixed(value < 100 ? 2 : 0)} ${each.main} | ${better} | ${show('CPU s/GB', 2)} | ${show('upstream ratio', 2)} | ${show('peak MB', 0)} |`,
    );
  }
  return lines.join('\n');
}

function describeRun(all: readonly System[]): string {
  const peers = all.slice(1).map(({ name, version }) => `${name} ${version}`);
  return `Node.js ${process.version}, ${availableParallelism()} cores (${cpus()[0]?.model ?? '?'}), ${Math.round(totalmem() / 2 ** 30)} GiB; ${peers.join(', ') || 'no peers installed'}. Medians of ${runs} runs, ${new Date().toISOString().slice(0, 10)}.`;
}

async function main(words: readonly string[]): Promise<void> {
  const write = words.includes('--write');
  const filters = words.filter((word) => word !== '--write');
  const all = systems();
  const chosen = cases.filter(
    ({ what, client }) =>
      (filters.length === 0 || filters.some((word) => what.includes(word))) &&
      (!client.startsWith('wrk') || versionOf('wrk', '-v', /(.)/) !== undefined),
  );
  const rows: Row[] = [];
  for (const kind of ['fast', 'slow'] as const) {
    const some = chosen.filter(({ upstream }) => upstream === kind);
    if (some.length === 0) continue;
    const upstream = await startUpstream(
      kind === 'fast' ? { sizes: coldSizes } : { sizes: slowSizes, latencyMs: 50, bytesPerSecond: 20 * MB },
    );
    for (const each of some) {
      process.stderr.write(`${each.what} …\n`);
      rows.push(...(await measure(each, all, upstream)));
    }
    await upstream.stop();
  }
  rmSync(scratch, { recursive: true, force: true });
  const result = `${describeRun(all)}\n\n${table(rows)}\n`;
  process.stdout.write(`${result}\n`);
  if (!write) return;
  const text = readFileSync(document, 'utf8');
  const updated = text.replace(/(<!-- run -->\n)[\s\S]*(<!-- end of run -->)/, `$1\n${result}\n$2`);
  const options = await resolveConfig(document);
  writeFileSync(document, await format(updated, { ...options, filepath: document }));
}

await main(process.argv.slice(2));
