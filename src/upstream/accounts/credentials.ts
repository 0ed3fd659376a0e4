import { spawn, type ChildProcess } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import type { Clock } from '../../util/clock.ts';
import { errorCode } from '../../util/errors.ts';

export interface Login {
  /** `<token>`: the password is an identity token (OAuth2 refresh token) for the token server. */
  readonly username: string;
  readonly password: string;
}

/** A source of an account's credentials. Error messages name the source, never a secret. */
export interface CredentialSource {
  readonly name: string;
  /** Undefined: the source has no login for this registry. */
  login(): Promise<Login | undefined>;
  /** Asks for the login again, bypassing caches, after `refused` was rejected. */
  renew(refused: Login): Promise<Login | undefined>;
}

/** A configured secret: literal text, or a file, which is read on each use. */
export type Secret = string | { readonly file: string };

const helperTimeoutMs = 10_000;
const maxHelperOutput = 64 * 1024;
const maxStderr = 500;
/** How long "no login" is cached: a user may log in meanwhile. */
const noLoginTtlMs = 60_000;
/** Life in ms of expiring cloud logins, by the user name that the helper returns; renewed before expiry. */
const loginLifeMs: Readonly<Record<string, number>> = {
  AWS: 11 * 60 * 60_000,
  oauth2accesstoken: 45 * 60_000,
  _dcgcr_oauth_token: 45 * 60_000,
  _dcgcr_gcr_token: 45 * 60_000,
  '00000000-0000-0000-0000-000000000000': 2 * 60 * 60_000,
};
const hubServer = 'https://index.docker.io/v1/';

export const identityUser = '<token>';
export const anonymous: CredentialSource = {
  name: 'anonymous',
  login: () => Promise.resolve(undefined),
  renew: () => Promise.resolve(undefined),
};

/** A reader of the secret; reads a file anew on each call, and falls back to its last content. */
export function secretReader(secret: Secret): () => Promise<string> {
  let last: string | undefined;
  return async () => {
    if (typeof secret === 'string') return secret;
    try {
      last = (await readFile(secret.file, 'utf8')).trimEnd();
    } catch (error) {
      // The file may be being replaced.
      if (last === undefined)
        throw new Error(`file ${secret.file} not readable (${errorCode(error) ?? 'unknown'})`, {
          cause: error,
        });
    }
    return last;
  };
}

/** A fixed user name with its password. */
export function fixedCredentials(username: string, secret: Secret): CredentialSource {
  const read = secretReader(secret);
  const login = async (): Promise<Login> => ({ username, password: await read() });
  return { name: username, login, renew: login };
}

/**
 * A docker-credential-helpers program: `docker-credential-<name> get` reads the server on stdin and writes a login as
 * JSON to stdout. The login is cached until it is rejected or expires.
 */
export function helperCredentials(helper: string, registry: string, clock: Clock): CredentialSource {
  let cached: { login: Login | undefined; until: number } | undefined;
  let running: Promise<Login | undefined> | undefined;
  const runAndCache = async (): Promise<Login | undefined> => {
    const login = await runHelper(helper, serverOf(registry));
    const forMs = login ? (loginLifeMs[login.username] ?? Infinity) : noLoginTtlMs;
    cached = { login, until: clock.monotonic() + forMs };
    return login;
  };
  const login = async (): Promise<Login | undefined> => {
    if (cached && clock.monotonic() < cached.until) return cached.login;
    running ??= runAndCache().finally(() => (running = undefined));
    return running;
  };
  const renew = (refused: Login): Promise<Login | undefined> => {
    if (cached?.login?.password === refused.password) cached = undefined;
    return login();
  };
  return { name: helper, login, renew };
}

const configFile = z.looseObject({
  auths: z
    .record(
      z.string(),
      z.looseObject({
        auth: z.string().optional(),
        username: z.string().optional(),
        password: z.string().optional(),
        identitytoken: z.string().optional(),
      }),
    )
    .optional(),
  credHelpers: z.record(z.string(), z.string()).optional(),
  credsStore: z.string().optional(),
});

/** The login that `docker login` left in a `config.json`, or in the helper named there. Reads the file on each use. */
export function dockerCredentials(file: string, registry: string, clock: Clock): CredentialSource {
  const helpers = new Map<string, CredentialSource>();
  const helperOf = (name: string): CredentialSource => {
    const source = helpers.get(name) ?? helperCredentials(name, registry, clock);
    helpers.set(name, source);
    return source;
  };
  const find = async (): Promise<{ login: Login | undefined } | { helper: CredentialSource }> => {
    let text: string;
    try {
      text = await readFile(file, 'utf8');
    } catch (cause) {
      throw new Error(`file ${file} not readable (${errorCode(cause) ?? 'unknown'})`, { cause });
    }
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch {
      // No cause: a parser's message quotes its input.
      throw new Error(`file ${file} is not JSON`);
    }
    const { data: config } = configFile.safeParse(json);
    if (!config) throw new Error(`file ${file} is not a Docker configuration`);
    const { auths = {}, credHelpers = {}, credsStore } = config;
    const helper = Object.entries(credHelpers).find(([server]) => isServer(server, registry))?.[1];
    if (helper !== undefined) return { helper: helperOf(helper) };
    const entry = Object.entries(auths).find(([server]) => isServer(server, registry))?.[1];
    const { auth, username, password, identitytoken } = entry ?? {};
    const [, user, pass] = /^([^:]*):(.*)$/s.exec(Buffer.from(auth ?? '', 'base64').toString()) ?? [];
    if (identitytoken) return { login: { username: identityUser, password: identitytoken } };
    if (user && pass) return { login: { username: user, password: pass.replace(/\0+$/, '') } };
    if (username && password) return { login: { username, password } };
    return credsStore === undefined ? { login: undefined } : { helper: helperOf(credsStore) };
  };
  return {
    name: 'docker-config',
    async login() {
      const found = await find();
      return 'helper' in found ? found.helper.login() : found.login;
    },
    async renew(refused) {
      const found = await find();
      return 'helper' in found ? found.helper.renew(refused) : found.login;
    },
  };
}

/** The key under which Docker stores logins for a registry. */
function serverOf(registry: string): string {
  return registry === 'docker.io' ? hubServer : registry;
}

function isServer(server: string, registry: string): boolean {
  const bare = server.replace(/^https?:\/\//, '').replace(/\/.*$/, '');
  const hub = ['docker.io', 'index.docker.io', 'registry-1.docker.io'];
  return bare === registry || (hub.includes(registry) && hub.includes(bare));
}

/** The program name of a credential helper. */
export function helperProgram(helper: string): string {
  return `docker-credential-${helper}`;
}

const helperAnswer = z.looseObject({ Username: z.string(), Secret: z.string().min(1) });

async function runHelper(helper: string, server: string): Promise<Login | undefined> {
  const program = helperProgram(helper);
  if (!/^[\w.-]+$/.test(helper)) throw new Error(`credential helper ${JSON.stringify(helper)}: invalid name`);
  const { code, output, stderr } = await runProgram(program, ['get'], `${server}\n`);
  if (code !== 0) {
    // The protocol reports this on stdout.
    if (/credentials not found/i.test(output)) return undefined;
    throw new Error(`${program} exited with ${code ?? 'a signal'}${stderr === '' ? '' : `: ${stderr}`}`);
  }
  let json: unknown;
  try {
    json = JSON.parse(output);
  } catch {
    throw new Error(`${program}: output is not JSON`);
  }
  const { data } = helperAnswer.safeParse(json);
  if (!data) throw new Error(`${program}: output has no Username and Secret`);
  return { username: data.Username, password: data.Secret };
}

function runProgram(
  program: string,
  args: readonly string[],
  input: string,
): Promise<{ code: number | null; output: string; stderr: string }> {
  return new Promise((resolve, reject) => {
    // In its own process group, so that its children, which hold the pipes open, are killed with it.
    const child: ChildProcess = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true });
    // Registered first: if the spawn fails there are no pipes, and an unhandled error event ends the process.
    child.on('error', (cause) => {
      clearTimeout(timer);
      reject(new Error(`${program} cannot be run (${errorCode(cause) ?? 'unknown'})`, { cause }));
    });
    const end = (why: string): void => {
      reject(new Error(`${program} ${why}`));
      child.stdout?.destroy();
      child.stderr?.destroy();
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
      } catch {
        // The process has just exited.
      }
    };
    const timer = setTimeout(() => end(`did not answer within ${helperTimeoutMs / 1000} s`), helperTimeoutMs);
    let output = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      if (output.length > maxHelperOutput) end('wrote too much output');
    });
    // For the log only, which shows no password: helpers explain failures on stderr.
    let stderr = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr = (stderr + text).slice(0, maxStderr);
    });
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve({ code, output, stderr: stderr.replace(/[^\x20-\x7e]+/g, ' ').trim() });
    });
    child.stdin?.on('error', () => undefined);
    child.stdin?.end(input);
  });
}
