import { resolve } from 'node:path';
import { RegistryPattern } from '../mirror/registry-pattern.ts';
import { patternOf, type Pattern } from '../oci/pattern.ts';
import { NetworkPolicy } from '../upstream/http/network-policy.ts';
import type { ProxyOptions } from '../upstream/http/proxy.ts';
import { presetOf } from '../upstream/presets.ts';
import { MirrorError } from '../util/errors.ts';
import { upstreamByAlias } from './aliases.ts';
import { checkAccounts, checkNames, problemsOfFamily } from './checks.ts';
import { readPems, readSecret, resolveClients, resolvePath } from './files.ts';
import { show } from './problems.ts';
import { isProxy, type Parsed } from './schema.ts';
import type {
  AccountConfig,
  AnyUpstreamConfig,
  Config,
  ConfigSource,
  FamilyConfig,
  UpstreamConfig,
} from './types.ts';

/** Resolves paths, presets, secrets, proxies and patterns. Adds errors to `problems`. */
export function complete(
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
      // The upstream authenticates the mirror by its certificate.
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
        ? 'upstreams: found only patterns, expected at least one registry name'
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

/** The configured proxy, or that of HTTPS_PROXY, HTTP_PROXY and ALL_PROXY. */
function proxyOf(
  configured: URL | null | undefined,
  protocol: string,
  env: ConfigSource['env'],
  at: string,
  problems: string[],
): ProxyOptions | undefined {
  const variableOf = (...names: string[]): string | undefined =>
    names
      .flatMap((name) => [env[name.toLowerCase()], env[name]])
      .find((value) => value !== undefined && value !== '');
  const except = variableOf('NO_PROXY') ?? '';
  if (configured) return { url: configured, except, isFromEnvironment: false };
  const variable = protocol === 'http:' ? 'HTTP_PROXY' : 'HTTPS_PROXY';
  const text = configured === null ? undefined : variableOf(variable, 'ALL_PROXY');
  if (text === undefined) return undefined;
  const url = URL.parse(text.includes('://') ? text : `http://${text}`);
  if (url && isProxy(url)) return { url, except, isFromEnvironment: true };
  problems.push(
    `${at}.proxy: ${variable} is not the URL of an http or https proxy; set "proxy" to a URL or "off"`,
  );
  return undefined;
}

/** Replaces aliases and hosts in patterns by registry names. Reports patterns that can never match: a `deny` would be void. */
function resolvePatterns(
  { allow, deny, clients, store, tags }: Parsed,
  { upstreams, families }: Pick<Config, 'upstreams' | 'families'>,
  problems: string[],
): Pick<Config, 'allow' | 'deny' | 'unmatchedPatterns' | 'tags'> & {
  groups: Parsed['clients']['groups'];
  pins: Pattern[];
} {
  const unmatchedPatterns: string[] = [];
  const resolveAll = (patterns: readonly Pattern[], at: string): Pattern[] =>
    patterns.map((pattern, i) => {
      const { text } = pattern;
      const [registry = '', ...rest] = text.split('/');
      const aliased = upstreamByAlias(upstreams, registry);
      const isKnown =
        aliased !== undefined ||
        registry.includes('*') ||
        upstreams.some((each) => each.registry === registry) ||
        families.some(({ pattern }) => pattern.matches(registry));
      if (/[A-Z]|\/\//.test(text.replace(/:[^:/]*$/, '')))
        problems.push(`${at}[${i}]: found ${show(text)}, expected a name in lower case, without empty parts`);
      if (!isKnown) unmatchedPatterns.push(`${at}[${i}]`);
      return aliased ? patternOf([aliased.registry, ...rest].join('/')) : pattern;
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
    const [resolved = match] = resolveAll([match], `tags.rules[${i}].match`);
    return { match: resolved, ttl };
  });
  return {
    allow: allow && resolveAll(allow, 'allow'),
    deny: resolveAll(deny, 'deny'),
    groups,
    tags: { ...tags, rules },
    pins: resolveAll(store.pins, 'store.pins'),
    unmatchedPatterns,
  };
}
