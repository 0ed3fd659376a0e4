import { closest, distance } from 'fastest-levenshtein';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, dirname, join, resolve } from 'node:path';
import { createSecureContext } from 'node:tls';
import { z } from 'zod';
import { RegistryPattern } from '../mirror/registry-pattern.ts';
import { problemOfHtpasswd } from '../server/htpasswd.ts';
import { checkCertificates, readTls, showPath, type TlsFiles } from '../server/tls.ts';
import { helperProgram, type Secret } from '../upstream/accounts/credentials.ts';
import { NetworkPolicy } from '../upstream/http/network-policy.ts';
import type { ProxyOptions } from '../upstream/http/proxy.ts';
import { presetOf } from '../upstream/presets.ts';
import { errorCode, MirrorError } from '../util/errors.ts';
import { ConfigError, describe, isObject, isPlainValue, kindOf, show, unwrap } from './problems.ts';
import { isProxy, schema, type Address, type Parsed, type SecretConfig } from './schema.ts';

export { ConfigError, type Address };

type ParsedUpstream = Parsed['upstreams'][number];

/** A user name with its password, or with the file that has it; or nobody. */
export type AccountConfig =
  { readonly username: string; readonly password: Secret } | { readonly anonymous: true };

interface AnyUpstreamConfig extends Omit<
  ParsedUpstream,
  'url' | 'aliases' | 'accounts' | 'realms' | 'proxy'
> {
  /** How it is connected to; certificates and keys in PEM. */
  readonly proxy: ProxyOptions | undefined;
  readonly accounts: readonly AccountConfig[];
  readonly realms: readonly string[];
}

export interface UpstreamConfig extends AnyUpstreamConfig {
  readonly url: URL;
  readonly aliases: readonly string[];
}

/** Many registries by one pattern, each at `https://` and its name. */
export interface FamilyConfig extends AnyUpstreamConfig {
  readonly pattern: RegistryPattern;
}

/** The configuration, checked and with every default in place: durations in ms, sizes in bytes, paths absolute. */
export interface Config extends Omit<
  Parsed,
  'upstreams' | 'defaultUpstream' | 'adminToken' | 'tls' | 'clients'
> {
  readonly tls: TlsFiles | undefined;
  readonly clients: Omit<Parsed['clients'], 'htpasswd'> & { readonly htpasswd: string | undefined };
  /** For the operations of the admin API. */
  readonly adminToken: Secret | undefined;
  readonly upstreams: readonly UpstreamConfig[];
  readonly families: readonly FamilyConfig[];
  readonly defaultUpstream: string;
  /** Where patterns of `allow` and `deny` name a registry that is not configured. */
  readonly idlePatterns: readonly string[];
  /** Environment variables that look like ours and are not. */
  readonly ignoredVariables: readonly string[];
}

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
  const ignoredVariables = applyVariables(raw, env, source);
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
  const upstreams: UpstreamConfig[] = [];
  const families: FamilyConfig[] = [];
  parsed.upstreams.forEach(({ url, aliases, accounts, realms, proxy, ...rest }, i) => {
    const at = `upstreams[${i}]`;
    const preset = presetOf(rest.registry);
    const completed: AnyUpstreamConfig = {
      ...rest,
      // Who shows a certificate is known by it.
      private: rest.private || rest.cert !== undefined,
      realms: realms ?? preset.realms ?? [],
      proxy: proxyOf(proxy, url?.protocol ?? 'https:', env, at, problems),
      ...readPems(rest, directory, at, problems),
      accounts: accounts.map(({ username, password }, j): AccountConfig => {
        if (username === undefined || password === undefined) return { anonymous: true };
        const path = `${at}.accounts[${j}].password`;
        return { username, password: readSecret(password, directory, env, path, problems) };
      }),
      ...(rest.dockerConfig !== undefined && { dockerConfig: resolvePath(directory, rest.dockerConfig) }),
    };
    checkAccounts(completed, env, at, problems);
    const pattern = RegistryPattern.parse(rest.registry);
    if (pattern) {
      families.push({ ...completed, pattern });
      problems.push(...problemsOfFamily({ url, aliases, accounts, ...rest }, at));
      return;
    }
    const named = {
      ...completed,
      url: url ?? new URL(preset.url ?? `https://${rest.registry}`),
      aliases: aliases ?? preset.aliases ?? [],
    };
    upstreams.push(named);
    try {
      new NetworkPolicy(named);
    } catch (error) {
      if (!(error instanceof MirrorError)) throw error;
      problems.push(`${at}.url: ${error.message}`);
    }
  });
  checkNames(parsed, upstreams, problems);
  const { groups, pins, ...patterns } = resolvePatterns(parsed, { upstreams, families }, problems);
  const defaultUpstream = parsed.defaultUpstream ?? upstreams[0]?.registry ?? '';
  if (!upstreams.some(({ registry }) => registry === defaultUpstream)) {
    const known = upstreams.map(({ registry }) => show(registry)).join(', ');
    problems.push(
      known === ''
        ? 'upstreams: found patterns alone, expected at least one registry by its name'
        : `defaultUpstream: found ${show(defaultUpstream)}, expected one of ${known}`,
    );
  }
  const store = { ...parsed.store, pins, path: resolve(directory, parsed.store.path) };
  const { tls, clients } = resolveClients(parsed, directory, problems);
  const adminToken =
    parsed.adminToken === undefined
      ? undefined
      : readSecret(parsed.adminToken, directory, env, 'adminToken', problems);
  return {
    ...parsed,
    ...patterns,
    clients: { ...clients, groups },
    store,
    tls,
    upstreams,
    families,
    defaultUpstream,
    adminToken,
  };
}

/** Files are tried here; both are read again when they change. */
function resolveClients(
  parsed: Parsed,
  directory: string,
  problems: string[],
): Pick<Config, 'tls' | 'clients'> {
  const tls = parsed.tls && {
    cert: resolvePath(directory, parsed.tls.cert),
    key: resolvePath(directory, parsed.tls.key),
    clientCa: parsed.tls.clientCa === undefined ? undefined : resolvePath(directory, parsed.tls.clientCa),
  };
  try {
    if (tls) readTls(tls);
  } catch (error) {
    problems.push((error as Error).message);
  }
  const htpasswd =
    parsed.clients.htpasswd === undefined ? undefined : resolvePath(directory, parsed.clients.htpasswd);
  const problem = htpasswd === undefined ? undefined : problemOfHtpasswd(htpasswd);
  if (problem !== undefined) problems.push(`clients.htpasswd: ${problem}`);
  return { tls, clients: { ...parsed.clients, htpasswd } };
}

/** What is configured, or what programs are told by convention. */
function proxyOf(
  configured: URL | null | undefined,
  protocol: string,
  env: ConfigSource['env'],
  at: string,
  problems: string[],
): ProxyOptions | undefined {
  const said = (...names: string[]): string | undefined =>
    names
      .flatMap((name) => [env[name.toLowerCase()], env[name]])
      .find((value) => value !== undefined && value !== '');
  const except = said('NO_PROXY') ?? '';
  if (configured) return { url: configured, except, isFromEnvironment: false };
  const variable = protocol === 'http:' ? 'HTTP_PROXY' : 'HTTPS_PROXY';
  const text = configured === null ? undefined : said(variable, 'ALL_PROXY');
  if (text === undefined) return undefined;
  const url = URL.parse(text.includes('://') ? text : `http://${text}`);
  if (url && isProxy(url)) return { url, except, isFromEnvironment: true };
  problems.push(
    `${at}.proxy: ${variable} names something else than an http or https proxy; set "proxy" to one, or to "off"`,
  );
  return undefined;
}

/** Their text, so that a file which has changed is a configuration that has changed. */
function readPems(
  upstream: Pick<ParsedUpstream, 'ca' | 'cert' | 'key'>,
  directory: string,
  at: string,
  problems: string[],
): Pick<ParsedUpstream, 'ca' | 'cert' | 'key'> {
  const pems: { ca?: string; cert?: string; key?: string } = {};
  for (const name of ['ca', 'cert', 'key'] as const) {
    const file = upstream[name];
    if (file === undefined) continue;
    try {
      pems[name] = readFileSync(resolvePath(directory, file), 'utf8');
    } catch (error) {
      problems.push(
        `${at}.${name}: the file ${showPath(file)} cannot be read (${errorCode(error) ?? 'unknown'})`,
      );
    }
  }
  if ((upstream.cert === undefined) !== (upstream.key === undefined))
    problems.push(
      `${at}: found ${upstream.cert === undefined ? 'key' : 'cert'} alone, expected cert and key`,
    );
  try {
    if (pems.ca !== undefined) checkCertificates(pems.ca, 'ca');
    createSecureContext(pems);
  } catch (error) {
    problems.push(`${at}: ca, cert and key cannot be used: ${(error as Error).message}`);
  }
  return pems;
}

/** What a name or a host means must not depend on an order. */
function checkNames(parsed: Parsed, upstreams: readonly UpstreamConfig[], problems: string[]): void {
  const names = new Set<string>();
  parsed.upstreams.forEach(({ registry, hosts }, i) => {
    const aliases = upstreams.find((each) => each.registry === registry)?.aliases ?? [];
    for (const name of [registry, ...aliases, ...hosts]) {
      if (names.has(name))
        problems.push(`upstreams[${i}]: found ${show(name)} a second time, expected each name once`);
      names.add(name);
    }
  });
}

/** Patterns by the name that the registry is configured by; those that can match nothing would leave open what they were to close. */
function resolvePatterns(
  { allow, deny, clients, store, tags }: Parsed,
  { upstreams, families }: Pick<Config, 'upstreams' | 'families'>,
  problems: string[],
): Pick<Config, 'allow' | 'deny' | 'idlePatterns' | 'tags'> & {
  groups: Parsed['clients']['groups'];
  pins: string[];
} {
  const idlePatterns: string[] = [];
  const resolveAll = (patterns: readonly string[], at: string): string[] =>
    patterns.map((text, i) => {
      const [registry = '', ...rest] = text.split('/');
      const meant = upstreams.find(({ aliases, hosts }) => [...aliases, ...hosts].includes(registry));
      const isKnown =
        meant !== undefined ||
        registry.includes('*') ||
        upstreams.some((each) => each.registry === registry) ||
        families.some(({ pattern }) => pattern.matches(registry));
      if (/[A-Z]|\/\//.test(text.replace(/:[^:/]*$/, '')))
        problems.push(`${at}[${i}]: found ${show(text)}, expected a name in lower case, without empty parts`);
      if (!isKnown) idlePatterns.push(`${at}[${i}]`);
      return meant ? [meant.registry, ...rest].join('/') : text;
    });
  const groups = clients.groups.map((group, i) => {
    if (clients.groups.findIndex(({ name }) => name === group.name) < i)
      problems.push(`clients.groups[${i}]: found ${show(group.name)} a second time, expected each name once`);
    const at = `clients.groups[${i}]`;
    return {
      ...group,
      allow: group.allow && resolveAll(group.allow, `${at}.allow`),
      deny: resolveAll(group.deny, `${at}.deny`),
    };
  });
  const rules = tags.rules.map(({ match, ttl }, i) => {
    const [meant = match] = resolveAll([match], `tags.rules[${i}].match`);
    return { match: meant, ttl };
  });
  return {
    allow: allow && resolveAll(allow, 'allow'),
    deny: resolveAll(deny, 'deny'),
    groups,
    tags: { ...tags, rules },
    pins: resolveAll(store.pins, 'store.pins'),
    idlePatterns,
  };
}

/** Whoever can rent a registry under the pattern must get nothing by it. */
function problemsOfFamily(
  { url, aliases, hosts, accounts }: Pick<ParsedUpstream, 'url' | 'aliases' | 'hosts' | 'accounts'>,
  at: string,
): string[] {
  const oneRegistry = 'expected nothing: a pattern stands for many registries';
  const problems: string[] = [];
  if (url !== undefined)
    problems.push(`${at}.url: found a URL, ${oneRegistry}, each at https:// and its name`);
  if ((aliases ?? []).length > 0) problems.push(`${at}.aliases: found names, ${oneRegistry}`);
  if (hosts.length > 0) problems.push(`${at}.hosts: found names, ${oneRegistry}`);
  if (accounts.some(({ username }) => username !== undefined))
    problems.push(
      `${at}.accounts: found a login, ${oneRegistry}, some of which may be anybody's; use dockerConfig or credentialHelper, which know logins by registry`,
    );
  return problems;
}

function checkAccounts(
  { accounts, dockerConfig, credentialHelper }: AnyUpstreamConfig,
  env: ConfigSource['env'],
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
    problems.push(`${at}.dockerConfig: the file ${showPath(dockerConfig)} does not exist`);
  if (credentialHelper !== undefined && !isOnPath(helperProgram(credentialHelper), env)) {
    const program = helperProgram(credentialHelper);
    problems.push(
      `${at}.credentialHelper: the program ${program} is not on the PATH: install it, or name another helper`,
    );
  }
}

function isOnPath(program: string, { PATH = process.env['PATH'] }: ConfigSource['env']): boolean {
  return (PATH ?? '').split(delimiter).some((directory) => {
    try {
      accessSync(join(directory, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function resolvePath(directory: string, path: string): string {
  return resolve(directory, path.replace(/^~(?=\/|$)/, homedir()));
}

/** A file is only tried here: it is read again whenever its content is needed. */
function readSecret(
  value: SecretConfig,
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
    problems.push(
      `${at}: the file ${showPath(value.file)} cannot be read (${errorCode(error) ?? 'unknown'})`,
    );
  }
  return { file };
}

/** What Kubernetes sets for each service of our name (its documentation, "Environment variables" of services). */
const kubernetesVariable =
  /_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)(_ADDR|_PORT|_PROTO)?$/;
/** So many letters may be wrong in a name that is meant for another. */
const nearestVariable = 3;

/**
 * Puts the values of `LAYERCACHE_STORE_MAX_BYTES` and the like over those of the file. Returns the variables that name no
 * key. Throws `ConfigError` for one that nearly names a key.
 */
function applyVariables(raw: Record<string, unknown>, env: ConfigSource['env'], source: string): string[] {
  const ignored: string[] = [];
  const problems: string[] = [];
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith(variablePrefix) || name === fileVariable || value === undefined) continue;
    const path = pathOf(schema, name.slice(variablePrefix.length));
    if (path) setAt(raw, path, value);
    else if (!kubernetesVariable.test(name)) {
      const meant = nearestVariableTo(name);
      if (meant === undefined) ignored.push(name);
      else
        problems.push(
          `the environment variable ${name} names no key: did you mean ${meant}? Rename or unset it`,
        );
    }
  }
  if (problems.length > 0) throw new ConfigError(source, problems);
  return ignored;
}

function nearestVariableTo(name: string): string | undefined {
  // Of an entry of a list the same number is meant.
  const numbers = [...name.matchAll(/_(\d+)_/g)].map(([, digits]) => digits ?? '');
  const names = variablesOf(schema, variablePrefix.slice(0, -1)).map((each) => {
    const left = [...numbers];
    return each.replace(/_0(?=_)/g, () => `_${left.shift() ?? '0'}`);
  });
  const plain = (text: string): string => text.replaceAll('_', '');
  const same = names.find((each) => plain(each) === plain(name));
  if (same !== undefined) return same;
  const nearest = closest(name, names);
  return distance(name, nearest) <= nearestVariable ? nearest : undefined;
}

/** All variables that name a scalar; of a list the first entry's. */
function variablesOf(type: z.core.$ZodType, name: string): string[] {
  const inner = unwrap(type);
  if (inner instanceof z.ZodArray) {
    return isObject(unwrap(inner.element)) ? variablesOf(inner.element, `${name}_0`) : [];
  }
  if (!isObject(inner)) return [name];
  return Object.entries(inner.shape).flatMap(([key, child]) => variablesOf(child, `${name}_${spelt(key)}`));
}

function spelt(key: string): string {
  return key.replace(/[A-Z]/g, '_$&').toUpperCase();
}

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
    const nested = unwrap(child);
    const isScalar = !isObject(nested) && !(nested instanceof z.ZodArray);
    const name = spelt(key);
    if (rest === name && isScalar) return [key];
    const path = rest.startsWith(`${name}_`) ? pathOf(child, rest.slice(name.length + 1)) : undefined;
    if (path) return [key, ...path];
  }
  return undefined;
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

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
