import { accessSync, constants, existsSync } from 'fs';
import { delimiter, join } from 'path';
import { showPath } from '../server/tls.ts';
import { helperProgram } from '../upstream/accounts/credentials.ts';
import { show } from './problems.ts';
import type { Parsed } from './schema.ts';
import type { AnyUpstreamConfig, ConfigSource, ParsedUpstream, UpstreamConfig } from './types.ts';

/** What a name or a host means must not depend on an order. */
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

/** Whoever can rent a registry under the pattern must get nothing by it. */
export function problemsOfFamily(
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

/** Accounts have different names, and what gives their logins is there. */
export function checkAccounts(
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
