import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { loadConfig } from '../../src/config/load.ts';
import type { Config } from '../../src/config/types.ts';
import { Service } from '../../src/service/service.ts';
import type { Clock } from '../../src/util/clock.ts';
import { filesBelow } from './files.ts';
import { ask, type Ask, type Reply } from './http.ts';

/** A clock that stands still until a test advances it or lets it run. */
export class TestClock implements Clock {
  #now = Date.parse('2026-01-01T00:00:00Z');
  #runsSince: number | undefined;

  now(): number {
    return this.#now + (this.#runsSince === undefined ? 0 : performance.now() - this.#runsSince);
  }

  monotonic(): number {
    return this.now();
  }

  run(): void {
    this.#runsSince ??= performance.now();
  }

  advance(ms: number): void {
    this.#now += ms;
  }
}

export interface MirrorOptions {
  /** The upstream's URL. */
  upstream: string;
  registry?: string;
  /** More keys of the upstream's configuration. */
  upstreamConfig?: Record<string, unknown>;
  /** More upstreams. */
  upstreams?: readonly object[];
  /** More keys of the configuration. */
  config?: Record<string, unknown>;
}

/** A complete mirror on port 0, in its own directory. */
export class TestMirror {
  readonly directory: string;
  readonly clock = new TestClock();
  log = '';
  #service: Service | undefined;
  #options: MirrorOptions;

  private constructor(directory: string, options: MirrorOptions) {
    this.directory = directory;
    this.#options = options;
  }

  static async start(options: MirrorOptions): Promise<TestMirror> {
    const directory = await mkdtemp(join(tmpdir(), 'layercache-test-'));
    const mirror = new TestMirror(directory, options);
    await mirror.start();
    return mirror;
  }

  get service(): Service {
    if (!this.#service) throw new Error('the mirror is stopped');
    return this.#service;
  }

  get isRunning(): boolean {
    return this.#service !== undefined;
  }

  get url(): string {
    const protocol = this.#options.config?.['tls'] === undefined ? 'http' : 'https';
    return `${protocol}://127.0.0.1:${this.service.address.port}`;
  }

  get adminUrl(): string {
    return `http://127.0.0.1:${this.service.adminAddress?.port ?? 0}`;
  }

  get dataDirectory(): string {
    return join(this.directory, 'data');
  }

  async start(): Promise<void> {
    const loaded = await this.#load();
    const sink = { write: (lines: string) => (this.log += lines) };
    this.#service = await Service.start(loaded, { clock: this.clock, logSink: sink });
    await this.#service.reconciled;
  }

  /** Resolves when no fill is running: what was pulled is committed. */
  async fillsEnded(): Promise<void> {
    await until(async () => (await this.metric('layercache_fills_active')) === 0, 'the fills have ended');
  }

  /** Reloads the configuration, as on SIGHUP. */
  async reload(options: Partial<MirrorOptions>): Promise<void> {
    this.reconfigure(options);
    await this.service.reload(await this.#load());
  }

  async #load(): Promise<Config> {
    const {
      upstream,
      registry = 'docker.io',
      upstreamConfig = {},
      upstreams = [],
      config = {},
    } = this.#options;
    const { store = {}, ...rest } = config as { store?: object };
    const file = join(this.directory, 'mirror.config.json');
    await writeFile(
      file,
      JSON.stringify({
        listen: '127.0.0.1:0',
        adminListen: '127.0.0.1:0',
        log: { level: 'debug' },
        store: { path: 'data', minFreeBytes: 0, ...store },
        upstreams: [{ registry, url: upstream, ...upstreamConfig }, ...upstreams],
        ...rest,
      }),
    );
    return loadConfig({ file, env: {}, directory: this.directory });
  }

  /** Changes options for the next start. */
  reconfigure(options: Partial<MirrorOptions>): void {
    this.#options = { ...this.#options, ...options };
  }

  async stop(): Promise<void> {
    await this.#service?.stop();
    this.#service = undefined;
  }

  async restart(): Promise<void> {
    await this.stop();
    await this.start();
  }

  async close(): Promise<void> {
    await this.stop();
    await rm(this.directory, { recursive: true, force: true });
  }

  get(path: string, options: Ask = {}): Promise<Reply> {
    return ask(`${this.url}${path}`, options);
  }

  head(path: string, headers: Record<string, string> = {}): Promise<Reply> {
    return this.get(path, { method: 'HEAD', headers });
  }

  async metrics(): Promise<string> {
    return (await ask(`${this.adminUrl}/metrics`)).body.toString();
  }

  /** The value of one series, named as in the text format. */
  async metric(series: string): Promise<number> {
    const line = (await this.metrics()).split('\n').find((each) => each.startsWith(`${series} `));
    return line === undefined ? 0 : Number(line.slice(series.length + 1));
  }

  /** Every file below the data directory, with its size. */
  async files(below = ''): Promise<{ path: string; size: number }[]> {
    const found = await filesBelow(join(this.dataDirectory, below));
    return found.map(({ path, size }) => ({ path: relative(this.dataDirectory, path), size }));
  }
}

/** Waits until the condition holds; polls on every turn of the event loop. `what`: for the error message. */
export async function until(holds: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`timed out waiting until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
