import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, resolve } from 'node:path';
import { closest, distance } from 'fastest-levenshtein';
import { z } from 'zod';
import { smallSize } from './oci/content.ts';
import { Pattern } from './oci/pattern.ts';
import { errorCode, MirrorError } from './util/errors.ts';
import type { Secret } from './upstream/credentials.ts';
import { NetworkPolicy } from './upstream/network-policy.ts';
import { parseDuration, parseSize } from './util/units.ts';

/** What is wrong with a configuration: each line names a key, what was found and what was expected. */
export class ConfigError extends Error {
  readonly problems: readonly string[];

  constructor(source: string, problems: readonly string[]) {
    super([`${source} cannot be used:`, ...problems.map((problem) => `  ${problem}`)].join('\n'));
    this.name = 'ConfigError';
    this.problems = problems;
  }
}

/** A value that is read from JSON or from the text of an environment variable. */
function scalar<T>(expected: string, parse: (value: unknown) => T | undefined) {
  return z.unknown().transform((value, context): T => {
    const parsed = parse(value);
    if (parsed !== undefined) return parsed;
    context.addIssue({ code: 'custom', message: expected, input: value });
    return z.NEVER;
  });
}

const duration = scalar('a duration such as "90s", "5m" or "30d"', parseDuration);
const durationOrOff = scalar('a duration such as "90s" or "30d", or "off"', (value) =>
  value === 'off' ? 0 : parseDuration(value),
);
const positiveDuration = scalar(
  'a duration above 0 such as "500ms", "90s" or "5m"',
  (value) => parseDuration(value) || undefined,
);
const size = scalar('a size such as "512MB" or "50GiB"', parseSize);
const sizeOr = (off: number) =>
  scalar('a size such as "512MB" or "50GiB", or "off"', (value) =>
    value === 'off' ? off : parseSize(value),
  );
const wholeNumber = (least: number, expected: string) =>
  scalar(expected, (value) => {
    const figure = typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : value;
    return Number.isSafeInteger(figure) && Number(figure) >= least ? Number(figure) : undefined;
  });
const count = wholeNumber(1, 'a whole number above 0');
const flag = scalar('true or false', (value) =>
  value === true || value === 'true' ? true : value === false || value === 'false' ? false : undefined,
);
const text = z.string().min(1);

export interface Address {
  readonly host: string;
  readonly port: number;
}

function parseAddress(value: unknown): Address | undefined {
  if (typeof value !== 'string') return undefined;
  const [, v6, host, digits] = /^(?:\[([0-9a-f:.]+)\]|([^:[\]]+)):(\d{1,5})$/i.exec(value) ?? [];
  const port = Number(digits);
  const name = v6 ?? host;
  return name !== undefined && port <= 65535 ? { host: name, port } : undefined;
}

const address = scalar('an address such as "0.0.0.0:5000" or "[::]:5000"', parseAddress);
const addressOrOff = scalar('an address such as "127.0.0.1:5001", or "off"', (value) =>
  value === 'off' ? null : parseAddress(value),
);
const origin = scalar('a URL such as "https://registry.example.com", without a path', (value) => {
  const url = typeof value === 'string' ? URL.parse(value) : null;
  const isOrigin =
    url && /^https?:$/.test(url.protocol) && url.username === '' && url.href === `${url.origin}/`;
  return isOrigin ? url : undefined;
});
const registryName = z
  .string()
  .regex(/^[a-z0-9.-]+(?::\d+)?$/, 'a host such as "docker.io" or "registry.example.com:5000"');

const patternText = z.string().refine((value) => Pattern.parse(value) !== undefined, {
  message: 'a pattern such as "docker.io/library/*:3.*" or "ghcr.io/acme/**"',
});

const secret = z.union([text, z.strictObject({ env: text }), z.strictObject({ file: text })]);

const account = z
  .strictObject({
    username: text.optional(),
    password: secret.optional(),
    anonymous: z.literal(true).optional(),
  })
  .refine(
    ({ username, password, anonymous }) =>
      anonymous ? !username && !password : username !== undefined && password !== undefined,
    'username and password, or { "anonymous": true }',
  );

const upstream = z.strictObject({
  registry: registryName,
  url: origin.optional(),
  aliases: z.array(registryName).optional(),
  accounts: z.array(account).default([]),
  dockerConfig: text.optional(),
  credentialHelper: z
    .string()
    .regex(/^[\w.-]+$/, 'the name of a credential helper such as "ecr-login"')
    .optional(),
  realms: z.array(z.url()).default([]),
  allowPrivateNetwork: flag.prefault(false),
  tags: z.strictObject({ ttl: duration.optional() }).prefault({}),
  maxConnections: count.prefault(32),
});

const schema = z.strictObject({
  listen: address.prefault('0.0.0.0:5000'),
  adminListen: addressOrOff.prefault('127.0.0.1:5001'),
  adminToken: secret.optional(),
  log: z
    .strictObject({ level: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace']).default('info') })
    .prefault({}),
  store: z
    .strictObject({
      path: text.default('data'),
      maxBytes: sizeOr(Infinity).prefault('50GB'),
      minFreeBytes: sizeOr(0).prefault('2GB'),
      maxIdle: durationOrOff.prefault('off'),
      pins: z.array(patternText).default([]),
      scrubEvery: durationOrOff.prefault('7d'),
    })
    .prefault({}),
  upstreams: z
    .array(upstream)
    .min(1, 'at least one upstream')
    .prefault([{ registry: 'docker.io' }]),
  defaultUpstream: registryName.optional(),
  tags: z
    .strictObject({
      ttl: duration.prefault('5m'),
      staleIfError: durationOrOff.prefault('30d'),
      negativeTtl: durationOrOff.prefault('10s'),
      revalidate: z.enum(['wait', 'behind']).default('wait'),
      whenGone: z.enum(['404', 'keep']).default('404'),
      rules: z.array(z.strictObject({ match: patternText, ttl: duration })).default([]),
    })
    .prefault({}),
  fetch: z
    .strictObject({
      connectionsPerBlob: count.prefault(4),
      spanBytes: scalar('a size above 64 KiB such as "16MiB"', (value) => {
        const bytes = parseSize(value);
        return bytes !== undefined && bytes > smallSize ? bytes : undefined;
      }).prefault('16MiB'),
      maxConnections: count.prefault(64),
      prefetch: z.enum(['chain', 'off']).default('chain'),
      connectTimeout: positiveDuration.prefault('5s'),
      headersTimeout: positiveDuration.prefault('20s'),
      idleTimeout: positiveDuration.prefault('30s'),
      giveUpAfter: positiveDuration.prefault('30s'),
      firstByteTimeout: positiveDuration.prefault('25s'),
      completeRanges: flag.prefault(true),
      maxManifestBytes: size.prefault('8MiB'),
    })
    .prefault({}),
  quota: z
    .strictObject({
      reserve: wholeNumber(0, 'a whole number').prefault(10),
      whenSpent: scalar<429 | 503>('"429" or "503"', (value) =>
        String(value) === '429' ? 429 : String(value) === '503' ? 503 : undefined,
      ).prefault('429'),
    })
    .prefault({}),
});

type Parsed = z.infer<typeof schema>;
type ParsedUpstream = Parsed['upstreams'][number];

/** A user name with its password, or with the file that has it; or nobody. */
export type AccountConfig =
  { readonly username: string; readonly password: Secret } | { readonly anonymous: true };

export interface UpstreamConfig extends Omit<ParsedUpstream, 'url' | 'aliases' | 'accounts'> {
  readonly url: URL;
  readonly aliases: readonly string[];
  readonly accounts: readonly AccountConfig[];
}

/** The configuration, checked and with every default in place: durations in ms, sizes in bytes, paths absolute. */
export interface Config extends Omit<Parsed, 'upstreams' | 'defaultUpstream' | 'adminToken'> {
  /** For the operations of the admin API. */
  readonly adminToken: Secret | undefined;
  readonly upstreams: readonly UpstreamConfig[];
  readonly defaultUpstream: string;
  /** Environment variables that look like ours and are not. */
  readonly ignoredVariables: readonly string[];
}

const presets: Readonly<Record<string, { url: string; aliases: string[] }>> = {
  'docker.io': { url: 'https://registry-1.docker.io', aliases: ['index.docker.io', 'registry-1.docker.io'] },
};

export interface ConfigSource {
  /** A configuration file that must exist. Without it `mirror.config.json` is taken if it is there. */
  file?: string | undefined;
  env: Readonly<Record<string, string | undefined>>;
  /** What relative paths of a configuration without file are relative to. */
  directory: string;
}

const defaultFile = 'mirror.config.json';
const variablePrefix = 'LAYERCACHE_';
/** Read by the command line, not by the schema. */
export const fileVariable = 'LAYERCACHE_CONFIG';

/** Reads file and environment. Throws `ConfigError`. */
export function loadConfig({ file, env, directory }: ConfigSource): Config {
  const path = resolve(directory, file ?? defaultFile);
  const source = file ?? defaultFile;
  const raw = readJson(path, source, file !== undefined);
  const ignoredVariables = applyVariables(raw, env);
  const parsed = schema.safeParse(raw, { reportInput: true });
  if (!parsed.success) throw new ConfigError(source, parsed.error.issues.flatMap(describe));
  const problems: string[] = [];
  const config = complete(parsed.data, dirname(path), env, problems);
  if (problems.length > 0) throw new ConfigError(source, problems);
  return { ...config, ignoredVariables };
}

function readJson(path: string, source: string, mustExist: boolean): Record<string, unknown> {
  let content: string;
  try {
    content = readFileSync(path, 'utf8');
  } catch (error) {
    if (errorCode(error) === 'ENOENT' && !mustExist) return {};
    throw new ConfigError(source, [`the file cannot be read (${errorCode(error) ?? 'unknown'})`]);
  }
  let json: unknown;
  try {
    json = JSON.parse(content);
  } catch (error) {
    // The parser's message quotes what stands there, and that may be a secret.
    const [at = 'somewhere'] =
      /at position \d+(?: \(line \d+ column \d+\))?/.exec((error as Error).message) ?? [];
    throw new ConfigError(source, [`not JSON: ${at}`]);
  }
  if (isRecord(json)) return json;
  throw new ConfigError(source, [
    `found ${isPlainValue(json) ? show(json) : kindOf(json)}, expected an object`,
  ]);
}

function complete(
  parsed: Parsed,
  directory: string,
  env: ConfigSource['env'],
  problems: string[],
): Omit<Config, 'ignoredVariables'> {
  const names = new Set<string>();
  const upstreams = parsed.upstreams.map(({ url, aliases, accounts, ...rest }, i): UpstreamConfig => {
    const at = `upstreams[${i}]`;
    const preset = presets[rest.registry];
    const completed = {
      ...rest,
      url: url ?? new URL(preset?.url ?? `https://${rest.registry}`),
      aliases: aliases ?? preset?.aliases ?? [],
      accounts: accounts.map(({ username, password }, j): AccountConfig => {
        if (username === undefined || password === undefined) return { anonymous: true };
        const path = `${at}.accounts[${j}].password`;
        return { username, password: readSecret(password, directory, env, path, problems) };
      }),
      ...(rest.dockerConfig !== undefined && { dockerConfig: resolvePath(directory, rest.dockerConfig) }),
    };
    checkAccounts(completed, at, problems);
    for (const name of [rest.registry, ...completed.aliases]) {
      if (names.has(name)) problems.push(`${at}: found ${show(name)} a second time, expected each name once`);
      names.add(name);
    }
    try {
      new NetworkPolicy(completed);
    } catch (error) {
      if (!(error instanceof MirrorError)) throw error;
      problems.push(`${at}.url: ${error.message}`);
    }
    return completed;
  });
  const defaultUpstream = parsed.defaultUpstream ?? upstreams[0]?.registry ?? '';
  if (!upstreams.some(({ registry }) => registry === defaultUpstream)) {
    const known = upstreams.map(({ registry }) => show(registry)).join(', ');
    problems.push(`defaultUpstream: found ${show(defaultUpstream)}, expected one of ${known}`);
  }
  const store = { ...parsed.store, path: resolve(directory, parsed.store.path) };
  const adminToken =
    parsed.adminToken === undefined
      ? undefined
      : readSecret(parsed.adminToken, directory, env, 'adminToken', problems);
  return { ...parsed, store, upstreams, defaultUpstream, adminToken };
}

function checkAccounts(
  { accounts, dockerConfig, credentialHelper }: UpstreamConfig,
  at: string,
  problems: string[],
): void {
  // By these names they go in metrics and messages.
  const names = [
    ...accounts.map((each) => ('username' in each ? each.username : 'anonymous')),
    ...(dockerConfig === undefined ? [] : ['docker-config']),
    ...(credentialHelper === undefined ? [] : [credentialHelper]),
  ];
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined)
    problems.push(`${at}.accounts: found ${show(twice)} a second time, expected each account once`);
  if (dockerConfig !== undefined && !existsSync(dockerConfig))
    problems.push(`${at}.dockerConfig: the file ${dockerConfig} does not exist`);
}

function resolvePath(directory: string, path: string): string {
  return resolve(directory, path.replace(/^~(?=\/|$)/, homedir()));
}

/** A file is only tried here: it is read again whenever its content is needed. */
function readSecret(
  value: z.infer<typeof secret>,
  directory: string,
  env: ConfigSource['env'],
  at: string,
  problems: string[],
): Secret {
  if (typeof value === 'string') return value;
  if ('env' in value) {
    const content = env[value.env];
    if (content === undefined || content === '')
      problems.push(`${at}: the environment variable ${value.env} is not set`);
    return content ?? '';
  }
  const file = resolvePath(directory, value.file);
  try {
    readFileSync(file);
  } catch (error) {
    problems.push(`${at}: the file ${value.file} cannot be read (${errorCode(error) ?? 'unknown'})`);
  }
  return { file };
}

/**
 * Puts the values of `LAYERCACHE_STORE_MAX_BYTES` and the like over those of the file. Returns the variables that name no
 * key: not an error, since Kubernetes sets such ones for a service of our name.
 */
function applyVariables(raw: Record<string, unknown>, env: ConfigSource['env']): string[] {
  const ignored: string[] = [];
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith(variablePrefix) || name === fileVariable || value === undefined) continue;
    const path = pathOf(schema, name.slice(variablePrefix.length));
    if (path) setAt(raw, path, value);
    else ignored.push(name);
  }
  return ignored;
}

type Shape = Readonly<Record<string, z.core.$ZodType>>;

/** The path that the rest of a variable's name spells, of scalars only. */
function pathOf(type: z.core.$ZodType, rest: string): (string | number)[] | undefined {
  const inner = unwrap(type);
  if (inner instanceof z.ZodArray) {
    const [, index, after] = /^(\d+)_(.+)$/.exec(rest) ?? [];
    const path = after === undefined ? undefined : pathOf(inner.element, after);
    return path && [Number(index), ...path];
  }
  if (!isObject(inner)) return undefined;
  for (const [key, child] of Object.entries(inner.shape)) {
    const spelt = key.replace(/[A-Z]/g, '_$&').toUpperCase();
    const nested = unwrap(child);
    const isScalar = !isObject(nested) && !(nested instanceof z.ZodArray);
    if (rest === spelt && isScalar) return [key];
    const path = rest.startsWith(`${spelt}_`) ? pathOf(child, rest.slice(spelt.length + 1)) : undefined;
    if (path) return [key, ...path];
  }
  return undefined;
}

function isObject(type: z.core.$ZodType): type is z.ZodObject<Shape> {
  return type instanceof z.ZodObject;
}

function unwrap(type: z.core.$ZodType): z.core.$ZodType {
  let inner = type;
  while (inner instanceof z.ZodOptional || inner instanceof z.ZodDefault || inner instanceof z.ZodPrefault) {
    inner = inner.def.innerType;
  }
  return inner;
}

function setAt(raw: Record<string, unknown>, path: readonly (string | number)[], value: string): void {
  let at: Record<string | number, unknown> = raw;
  path.slice(0, -1).forEach((key, i) => {
    const next = at[key];
    if (typeof next !== 'object' || next === null) at[key] = typeof path[i + 1] === 'number' ? [] : {};
    at = at[key] as Record<string | number, unknown>;
  });
  at[path.at(-1) ?? ''] = value;
}

function describe(issue: z.core.$ZodIssue): string[] {
  const at = issue.path.reduce<string>(
    (path, key) =>
      typeof key === 'number' ? `${path}[${key}]` : path === '' ? String(key) : `${path}.${String(key)}`,
    '',
  );
  if (issue.code === 'unrecognized_keys') {
    const known = keysAt(issue.path);
    return issue.keys.map((key) => {
      const near = known.length > 0 ? closest(key, known) : '';
      const hint = near !== '' && distance(key, near) <= 3 ? `, did you mean ${show(near)}?` : '';
      return `${at === '' ? key : `${at}.${key}`}: unknown key${hint || `; known here: ${known.join(', ')}`}`;
    });
  }
  const isSecret = /password$|accounts|adminToken/.test(at);
  const found =
    issue.input === undefined
      ? 'nothing'
      : isSecret
        ? 'something else'
        : isPlainValue(issue.input)
          ? show(issue.input)
          : kindOf(issue.input);
  return [`${at === '' ? 'the configuration' : at}: found ${found}, expected ${expectation(issue)}`];
}

function expectation(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_type')
    return issue.expected === 'array' ? 'a list' : `a value of type ${issue.expected}`;
  if (issue.code === 'invalid_value') return `one of ${issue.values.map((value) => show(value)).join(', ')}`;
  if (issue.code === 'invalid_union') return 'a string, { "env": "NAME" } or { "file": "path" }';
  if (issue.code === 'too_small' && issue.origin === 'string') return 'a text that is not empty';
  return issue.message;
}

function keysAt(path: readonly PropertyKey[]): string[] {
  let type: z.core.$ZodType = unwrap(schema);
  for (const key of path) {
    if (type instanceof z.ZodArray) type = unwrap(type.element);
    else if (isObject(type)) type = unwrap(type.shape[String(key)] ?? type);
  }
  return isObject(type) ? Object.keys(type.shape) : [];
}

function show(value: unknown): string {
  return JSON.stringify(value).slice(0, 100);
}

function isPlainValue(value: unknown): boolean {
  return typeof value !== 'object' || value === null || Object.keys(value).length === 0;
}

/** What is in it is not shown: there may be secrets below. */
function kindOf(value: unknown): string {
  return Array.isArray(value) ? 'a list' : 'an object';
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
