import { appendFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { filesBelow, type FoundFile } from '../support/files.ts';
import { ask } from '../support/http.ts';
import { until } from '../support/mirror.ts';
import { freePort, main, Program, run } from '../support/programs.ts';
import { login, type World } from './world.ts';

/** Limits of the mirror that clients and observer check. */
export const limits = {
  maxBytes: 100_000_000,
  /** Allowed size of the data directory above its cap. */
  slackBytes: 32_000_000,
  tagTtlMs: 4000,
  firstByteMs: 10_000,
  rssBytes: 600_000_000,
  handles: 700,
  loopLagSeconds: 1.5,
};

/** The mirror under test, a process that is killed, restarted and reconfigured. */
export class Subject {
  readonly directory: string;
  readonly data: string;
  /** False while it is stopped on purpose: broken connections are then expected. */
  isUp = false;
  readonly #world: World;
  readonly #port: number;
  readonly #adminPort: number;
  #program: Program | undefined;
  #reloads = 0;

  private constructor(directory: string, world: World, ports: [number, number]) {
    this.directory = directory;
    this.data = join(directory, 'data');
    this.#world = world;
    [this.#port, this.#adminPort] = ports;
  }

  static async start(directory: string, world: World): Promise<Subject> {
    const subject = new Subject(directory, world, [await freePort(), await freePort()]);
    await subject.start();
    return subject;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  get adminUrl(): string {
    return `http://127.0.0.1:${this.#adminPort}`;
  }

  get pid(): number {
    return this.#program?.child.pid ?? 0;
  }

  async start(): Promise<void> {
    await this.#configure();
    this.#program = new Program(['serve'], this.directory);
    await until(
      () =>
        ask(`${this.url}/v2/`).then(
          () => true,
          () => false,
        ),
      'the mirror answers',
    );
    this.isUp = true;
  }

  async kill(): Promise<void> {
    this.isUp = false;
    this.#program?.child.kill('SIGKILL');
    await this.#end();
  }

  /** Stops it by SIGTERM; resolves to the exit code. */
  async stop(): Promise<number | null> {
    this.isUp = false;
    this.#program?.child.kill('SIGTERM');
    await this.#end();
    return this.#program?.child.exitCode ?? null;
  }

  /** Changes the configuration and sends SIGHUP. */
  async reload(): Promise<void> {
    this.#reloads += 1;
    await this.#configure();
    this.#program?.child.kill('SIGHUP');
  }

  async operate(operation: string, args: object): Promise<unknown> {
    const reply = await ask(`${this.adminUrl}/api/${operation}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(args),
    });
    return JSON.parse(reply.body.toString());
  }

  /** The output of a command, also on exit code 1. */
  async command(...args: string[]): Promise<string> {
    const { stdout } = await run(process.execPath, [main, 'store', ...args], { cwd: this.directory }).catch(
      (error: unknown) => error as { stdout: string },
    );
    return stdout;
  }

  async metrics(): Promise<ReadonlyMap<string, number>> {
    const { body } = await ask(`${this.adminUrl}/metrics`);
    const series = body
      .toString()
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#'));
    return new Map(
      series.map((line) => {
        const space = line.lastIndexOf(' ');
        return [line.slice(0, space), Number(line.slice(space + 1))];
      }),
    );
  }

  /** Files below a folder of the data directory. */
  files(below = ''): Promise<FoundFile[]> {
    // Missing before the first start.
    return filesBelow(join(this.data, below)).catch(() => []);
  }

  async #end(): Promise<void> {
    await this.#program?.exited;
    await appendFile(join(this.directory, 'mirror.log'), this.#program?.output ?? '');
    await appendFile(join(this.directory, 'mirror.log'), this.#program?.errors ?? '');
  }

  async #configure(): Promise<void> {
    const { hub, open, rented } = this.#world;
    const isOdd = this.#reloads % 2 === 1;
    const config = {
      listen: `127.0.0.1:${this.#port}`,
      adminListen: `127.0.0.1:${this.#adminPort}`,
      log: { level: 'warn' },
      store: { maxBytes: limits.maxBytes, minFreeBytes: 'off' },
      upstreams: [
        {
          registry: 'docker.io',
          url: hub.url,
          accounts: [login],
          realms: [hub.realm],
          maxConnections: isOdd ? 16 : 32,
        },
        { registry: 'open.example', url: open.url },
        rented.config,
      ],
      tags: { ttl: `${limits.tagTtlMs}ms`, negativeTtl: '2s' },
      fetch: {
        connectTimeout: '2s',
        headersTimeout: '4s',
        idleTimeout: '5s',
        giveUpAfter: '8s',
        firstByteTimeout: `${limits.firstByteMs}ms`,
      },
      clients: { groups: [{ name: 'outsiders', from: ['127.0.0.3'], deny: ['docker.io/team/**'] }] },
    };
    await writeFile(join(this.directory, 'mirror.config.json'), JSON.stringify(config));
  }
}
