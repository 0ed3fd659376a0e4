import { accessSync, constants, existsSync } from 'fs';
import { delimiter, join } from 'path';
import { showPath } from '../server/tls.ts';
import { helperProgram } from '../upstream/accounts/credentials.ts';
import { show } from './problems.ts';
import type { Parsed } from './schema.ts';
import type { AnyUpstreamConfig, ConfigSource, ParsedUpstream, UpstreamConfig } from './types.ts';

/** Every registry name, alias and host is unique, so that the order of upstreams does not matter. */
export function checkNames(parsed: Parsed, upstreams: readonly UpstreamConfig[], problems: string[]): void {
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

/** A pattern may cover registries of strangers: no fixed URL, name or login may apply to all of them. */
export function problemsOfFamily(
  { url, aliases, hosts, accounts }: Pick<ParsedUpstream, 'url' | 'aliases' | 'hosts' | 'accounts'>,
  at: string,
): string[] {
  const oneRegistry = 'expected nothing: a pattern covers many registries';
  const problems: string[] = [];
  if (url !== undefined)
    problems.push(`${at}.url: found a URL, ${oneRegistry}, each at https:// followed by its name`);
  if ((aliases ?? []).length > 0) problems.push(`${at}.aliases: found names, ${oneRegistry}`);
  if (hosts.length > 0) problems.push(`${at}.hosts: found names, ${oneRegistry}`);
  if (accounts.some(({ username }) => username !== undefined))
    problems.push(
      `${at}.accounts: found a login, ${oneRegistry}, some of which may belong to strangers; use dockerConfig or credentialHelper, which have one login per registry`,
    );
  return problems;
}

/** Account names are unique; the Docker configuration file and the credential helper exist. */
export function checkAccounts(
  { accounts, dockerConfig, credentialHelper }: AnyUpstreamConfig,
  env: ConfigSource['env'],
  at: string,
  problems: string[],
): void {
  // Names of accounts in metrics and messages.
  const names = [
    ...accounts.map((each) => ('username' in each ? each.username : 'anonymous')),
    ...(dockerConfig === undefined ? [] : ['docker-config']),
    ...(credentialHelper === undefined ? [] : [credentialHelper]),
  ];
  const duplicate = names.find((name, i) => names.indexOf(name) < i);
  if (duplicate !== undefined)
    problems.push(`${at}.accounts: found ${show(duplicate)} a second time, expected each account once`);
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
