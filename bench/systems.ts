import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';

/** A mirror under test, in front of one upstream, with an empty directory. */
export interface Running {
  readonly url: string;
  /** CPU seconds of all its processes so far. */
  cpuSeconds(): number;
  /** Peak resident memory of its processes since `forgetPeak`, bytes. */
  peakBytes(): number;
  forgetPeak(): void;
  stop(): Promise<void>;
}

export interface System {
  readonly name: string;
  readonly version: string;
  start(upstreamUrl: string, directory: string): Promise<Running>;
}

const root = join(import.meta.dirname, '..');
const ticksPerSecond = 100;

/** Layercache and the installed alternatives. */
export function systems(): System[] {
  const nginx = versionOf('nginx', '-v', /nginx\/(\S+)/);
  const registry = versionOf('docker-registry', '--version', /(\d+\.\d+\.\d+)/);
  return [
    { name: 'Layercache', version: '', start: startLayercache },
    ...(nginx ? [{ name: 'nginx proxy_cache', version: nginx, start: startNginx }] : []),
    ...(registry ? [{ name: 'docker-registry proxy', version: registry, start: startRegistry }] : []),
  ];
}

export function versionOf(program: string, flag: string, pattern: RegExp): string | undefined {
  const { stdout, stderr, error } = spawnSync(program, [flag], { encoding: 'utf8' });
  return error ? undefined : (pattern.exec(stdout + stderr)?.[1] ?? '?');
}

async function startLayercache(upstreamUrl: string, directory: string): Promise<Running> {
  const port = await prepare(directory);
  const config = join(directory, 'mirror.config.json');
  writeFileSync(
    config,
    JSON.stringify({
      listen: `127.0.0.1:${port}`,
      adminListen: 'off',
      store: { minFreeBytes: 'off' },
      upstreams: [{ registry: 'docker.io', url: upstreamUrl }],
    }),
  );
  // As set by npm start.
  process.env['MALLOC_ARENA_MAX'] = '1';
  return run(process.execPath, [join(root, 'src/main.js'), 'serve', '--config', config], port, directory);
}

async function startNginx(upstreamUrl: string, directory: string): Promise<Running> {
  const port = await prepare(directory);
  const config = join(directory, 'nginx.conf');
  writeFileSync(
    config,
    `daemon off; master_process on; worker_processes 2; pid ${directory}/pid; error_log ${directory}/error.log;
     user root; events { worker_connections 1024; }
     http {
       access_log ${directory}/access.log; sendfile on; tcp_nopush on;
       proxy_cache_path ${directory}/cache levels=1:2 keys_zone=c:10m max_size=50g inactive=1d use_temp_path=off;
       upstream u { server ${new URL(upstreamUrl).host}; keepalive 16; }
       server {
         listen 127.0.0.1:${port};
         location / {
           proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection "";
           proxy_cache c; proxy_cache_valid 200 1d; proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;
         }
       }
     }`,
  );
  return run('nginx', ['-c', config, '-e', join(directory, 'error.log')], port, directory);
}

async function startRegistry(upstreamUrl: string, directory: string): Promise<Running> {
  const port = await prepare(directory);
  const config = join(directory, 'config.yml');
  writeFileSync(
    config,
    `version: 0.1
log: { level: error }
storage: { filesystem: { rootdirectory: ${directory}/data } }
http: { addr: '127.0.0.1:${port}' }
proxy: { remoteurl: '${upstreamUrl}' }
`,
  );
  return run('docker-registry', ['serve', config], port, directory);
}

async function prepare(directory: string): Promise<number> {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as AddressInfo;
  probe.close();
  await once(probe, 'close');
  return port;
}

async function run(program: string, args: string[], port: number, directory: string): Promise<Running> {
  const child = spawn(program, args, { stdio: 'ignore', cwd: directory });
  const url = `http://127.0.0.1:${port}`;
  const deadline = performance.now() + 10_000;
  while (!(await answers(`${url}/v2/`))) {
    if (child.exitCode !== null || performance.now() > deadline) throw new Error(`${program} does not start`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return {
    url,
    cpuSeconds: () => sum(processesOf(child), cpuSecondsOf),
    peakBytes: () => sum(processesOf(child), peakOf),
    forgetPeak: () => {
      for (const pid of processesOf(child)) writeFileSync(`/proc/${pid}/clear_refs`, '5');
    },
    stop: async () => {
      const ended = once(child, 'close');
      child.kill('SIGTERM');
      await ended;
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

async function answers(url: string): Promise<boolean> {
  try {
    const response = await fetch(url);
    await response.arrayBuffer();
    return response.ok;
  } catch {
    return false;
  }
}

function processesOf({ pid = 0 }: ChildProcess): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean);
  return [pid, ...children.map(Number)];
}

function cpuSecondsOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}

function peakOf(pid: number): number {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024;
}

function sum<T>(values: readonly T[], of: (value: T) => number): number {
  return values.reduce((total, value) => total + of(value), 0);
}
