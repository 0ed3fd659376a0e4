import { spawn, type ChildProcess } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import type { Clock } from '../../util/clock.ts';
import { errorCode } from '../../util/errors.ts';

export interface Login {
  /** `<token>`: the password is an identity token, for the token server's POST. */
  readonly username: string;
  readonly password: string;
}

/** Where an account's credentials come from. Errors name the source, and no secret. */
export interface CredentialSource {
  readonly name: string;
  /** Undefined: it has none for this registry. */
  login(): Promise<Login | undefined>;
  /** After `refused` was refused: what was remembered is asked for anew. */
  renewed(refused: Login): Promise<Login | undefined>;
}

/** A secret as it is configured: text, or a file that is read when it is needed. */
export type Secret = string | { readonly file: string };

const helperTimeoutMs = 10_000;
const maxHelperOutput = 64 * 1024;
const maxComplaint = 500;
/** That there is no login is believed so long: somebody may log in. */
const withoutLoginMs = 60_000;
/** Cloud logins that expire, by the user name that their helpers give; renewed before they do. */
const lifeMs: Readonly<Record<string, number>> = {
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
  renewed: () => Promise.resolve(undefined),
};

/** Reads a secret; a file again whenever it is needed. */
export function secretReader(secret: Secret): () => Promise<string> {
  let last: string | undefined;
  return async () => {
    if (typeof secret === 'string') return secret;
    try {
      last = (await readFile(secret.file, 'utf8')).trimEnd();
    } catch (error) {
      // It may be being replaced.
      if (last === undefined)
        throw new Error(`the file ${secret.file} cannot be read (${errorCode(error) ?? 'unknown'})`, {
          cause: error,
        });
    }
    return last;
  };
}

/** A user name and its password. */
export function fixedCredentials(username: string, secret: Secret): CredentialSource {
  const read = secretReader(secret);
  const login = async (): Promise<Login> => ({ username, password: await read() });
  return { name: username, login, renewed: login };
}

/**
 * A program of the docker-credential-helpers protocol: `docker-credential-<name> get`, with the server on its standard
 * input and a login as JSON on its output. Its answer is remembered until it is refused, or expires.
 */
export function helperCredentials(helper: string, registry: string, clock: Clock): CredentialSource {
  let known: { login: Login | undefined; until: number } | undefined;
  let running: Promise<Login | undefined> | undefined;
  const ask = async (): Promise<Login | undefined> => {
    const login = await runHelper(helper, serverOf(registry));
    const forMs = login ? (lifeMs[login.username] ?? Infinity) : withoutLoginMs;
    known = { login, until: clock.monotonic() + forMs };
    return login;
  };
  const login = async (): Promise<Login | undefined> => {
    if (known && clock.monotonic() < known.until) return known.login;
    running ??= ask().finally(() => (running = undefined));
    return running;
  };
  const renewed = (refused: Login): Promise<Login | undefined> => {
    if (known?.login?.password === refused.password) known = undefined;
    return login();
  };
  return { name: helper, login, renewed };
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

/** What `docker login` has left in a `config.json`, read again whenever it is needed: a login, or the helper that has it. */
export function dockerCredentials(file: string, registry: string, clock: Clock): CredentialSource {
  const helpers = new Map<string, CredentialSource>();
  const helperOf = (name: string): CredentialSource => {
    const known = helpers.get(name) ?? helperCredentials(name, registry, clock);
    helpers.set(name, known);
    return known;
  };
  const find = async (): Promise<{ login: Login | undefined } | { helper: CredentialSource }> => {
    let text: string;
    try {
      text = await readFile(file, 'utf8');
    } catch (cause) {
      throw new Error(`the file ${file} cannot be read (${errorCode(cause) ?? 'unknown'})`, { cause });
    }
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch {
      // No cause: a parser's message quotes what it read.
      throw new Error(`the file ${file} is not JSON`);
    }
    const { data: config } = configFile.safeParse(json);
    if (!config) throw new Error(`the file ${file} is not a Docker configuration`);
    const { auths = {}, credHelpers = {}, credsStore } = config;
    const helper = Object.entries(credHelpers).find(([server]) => isServer(server, registry))?.[1];
    if (helper !== undefined) return { helper: helperOf(helper) };
    const entry = Object.entries(auths).find(([server]) => isServer(server, registry))?.[1];
    const { auth, username, password, identitytoken } = entry ?? {};
    const [, user, word] = /^([^:]*):(.*)$/s.exec(Buffer.from(auth ?? '', 'base64').toString()) ?? [];
    if (identitytoken) return { login: { username: identityUser, password: identitytoken } };
    if (user && word) return { login: { username: user, password: word.replace(/\0+$/, '') } };
    if (username && password) return { login: { username, password } };
    return credsStore === undefined ? { login: undefined } : { helper: helperOf(credsStore) };
  };
  return {
    name: 'docker-config',
    async login() {
      const found = await find();
      return 'helper' in found ? found.helper.login() : found.login;
    },
    async renewed(refused) {
      const found = await find();
      return 'helper' in found ? found.helper.renewed(refused) : found.login;
    },
  };
}

/** How logins for a registry are filed. */
function serverOf(registry: string): string {
  return registry === 'docker.io' ? hubServer : registry;
}

function isServer(server: string, registry: string): boolean {
  const bare = server.replace(/^https?:\/\//, '').replace(/\/.*$/, '');
  const hub = ['docker.io', 'index.docker.io', 'registry-1.docker.io'];
  return bare === registry || (hub.includes(registry) && hub.includes(bare));
}

/** The program of a helper, as the docker-credential-helpers protocol names it. */
export function helperProgram(helper: string): string {
  return `docker-credential-${helper}`;
}

const helperAnswer = z.looseObject({ Username: z.string(), Secret: z.string().min(1) });

async function runHelper(helper: string, server: string): Promise<Login | undefined> {
  const program = helperProgram(helper);
  if (!/^[\w.-]+$/.test(helper)) throw new Error(`credential helper ${JSON.stringify(helper)}: not a name`);
  const { code, output, complaint } = await runProgram(program, ['get'], `${server}\n`);
  if (code !== 0) {
    // By the protocol this is said on standard output.
    if (/credentials not found/i.test(output)) return undefined;
    throw new Error(`${program} ended with ${code ?? 'a signal'}${complaint === '' ? '' : `: ${complaint}`}`);
  }
  let json: unknown;
  try {
    json = JSON.parse(output);
  } catch {
    throw new Error(`${program} did not answer in JSON`);
  }
  const { data } = helperAnswer.safeParse(json);
  if (!data) throw new Error(`${program} did not answer with Username and Secret`);
  return { username: data.Username, password: data.Secret };
}

function runProgram(
  program: string,
  args: readonly string[],
  input: string,
): Promise<{ code: number | null; output: string; complaint: string }> {
  return new Promise((resolve, reject) => {
    // In a group of its own: what it has started holds its output open, and must go with it.
    const child: ChildProcess = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true });
    // First of all: without descriptors there are no pipes, and an error that nobody hears ends the process.
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
        // It has just ended by itself.
      }
    };
    const timer = setTimeout(() => end(`has not answered in ${helperTimeoutMs / 1000} s`), helperTimeoutMs);
    let output = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      output += text;
      if (output.length > maxHelperOutput) end('answers with too much');
    });
    // For the log alone, where a password has no place: helpers say there what went wrong.
    let complaint = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      complaint = (complaint + text).slice(0, maxComplaint);
    });
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve({ code, output, complaint: complaint.replace(/[^\x20-\x7e]+/g, ' ').trim() });
    });
    child.stdin?.on('error', () => undefined);
    child.stdin?.end(input);
  });
}
