import { execFile, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { ask } from './http.ts';
import { until } from './mirror.ts';

/** Why tests with these programs are skipped; undefined if they can run. */
export function missing(...programs: string[]): string | undefined {
  if (process.getuid?.() !== 0) return 'skipped: needs root';
  const path = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin'];
  const absent = programs.filter(
    (program) => !path.some((directory) => isExecutable(join(directory, program))),
  );
  return absent.length === 0 ? undefined : `skipped: ${absent.join(', ')} not installed`;
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

/** Runs a program to its end; rejects with its output if it fails. */
export const run = promisify(execFile);

/** A program that runs until it is stopped. */
export class Daemon {
  output = '';
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;

  constructor(program: string, args: readonly string[]) {
    this.#child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#closed = once(this.#child, 'close');
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.on('data', (chunk: Buffer) => (this.output += chunk.toString()));
    }
  }

  async stop(): Promise<void> {
    this.#child.kill('SIGTERM');
    await this.#closed;
  }
}

/** Debian's docker-registry as an independent upstream. Its access log counts requests. */
export class DockerRegistry {
  readonly port: number;
  readonly #config: string;
  #daemon: Daemon | undefined;

  private constructor(port: number, config: string) {
    this.port = port;
    this.#config = config;
  }

  /** `htpasswd`: path of its htpasswd file. */
  static async start(directory: string, { name = 'registry', htpasswd = '' } = {}): Promise<DockerRegistry> {
    const port = await freePort();
    const config = join(directory, `${name}.yml`);
    await writeFile(
      config,
      [
        'version: 0.1',
        ...(htpasswd === '' ? [] : [`auth: { htpasswd: { realm: r, path: ${htpasswd} } }`]),
        `storage: { filesystem: { rootdirectory: ${join(directory, name)} } }`,
        `http: { addr: "127.0.0.1:${port}" }`,
      ].join('\n'),
    );
    const registry = new DockerRegistry(port, config);
    await registry.resume();
    return registry;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async resume(): Promise<void> {
    this.#daemon = new Daemon('docker-registry', ['serve', this.#config]);
    await until(
      () =>
        ask(`${this.url}/v2/`).then(
          ({ status }) => status === 200 || status === 401,
          () => false,
        ),
      'docker-registry answers',
    );
  }

  async stop(): Promise<void> {
    await this.#daemon?.stop();
    this.#daemon = undefined;
  }

  /** Pull requests that it received, as `HEAD manifests/latest`. */
  pulls(): string[] {
    const lines =
      this.#daemon?.output.matchAll(/"(GET|HEAD) \/v2\/[^ ]*?((?:manifests|blobs)\/[^ /?]+) HTTP/g) ?? [];
    return [...lines].map(([, method, what]) => `${method ?? ''} ${what ?? ''}`);
  }

  forget(): void {
    if (this.#daemon) this.#daemon.output = '';
  }
}

/** Entry point of the program. */
export const main = join(import.meta.dirname, '../../src/main.js');

/** Whether another user can run the program from this directory. */
export function canRunAs(uid: number): boolean {
  if (process.getuid?.() !== 0) return false;
  const look = `require('node:fs').accessSync(${JSON.stringify(main)})`;
  return spawnSync(process.execPath, ['-e', look], { uid, gid: uid, cwd: '/' }).status === 0;
}

/** The program as its own process, with a configuration file. */
export class Program {
  readonly child: ChildProcess;
  readonly exited: Promise<unknown>;
  output = '';
  errors = '';

  /** `as`: user to run as. */
  constructor(args: string[], cwd: string, as: { uid?: number; gid?: number } = {}) {
    const options = { cwd, stdio: ['ignore' as const, 'pipe' as const, 'pipe' as const], ...as };
    this.child = spawn(process.execPath, [main, ...args], options);
    this.exited = once(this.child, 'close');
    this.child.stdout?.on('data', (chunk: Buffer) => (this.output += chunk.toString()));
    this.child.stderr?.on('data', (chunk: Buffer) => (this.errors += chunk.toString()));
  }

  async port(): Promise<string> {
    await until(() => this.output.includes('layercache is ready'), 'the program is ready');
    return /"listen":"127\.0\.0\.1:(\d+)"/.exec(this.output)?.[1] ?? '';
  }
}

/** Runs `work` in a temporary directory with a configuration file. */
export async function inDirectory(config: object, work: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'layercache-test-'));
  try {
    await writeFile(join(directory, 'mirror.config.json'), JSON.stringify(config));
    await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
