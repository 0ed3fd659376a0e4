import { readFileSync } from 'fs';
import { resolve } from 'node:path';
import { homedir } from 'os';
import { createSecureContext } from 'tls';
import { problemOfHtpasswd } from '../server/htpasswd.ts';
import { checkCertificates, readTls, showPath } from '../server/tls.ts';
import type { Secret } from '../upstream/accounts/credentials.ts';
import { errorCode } from '../util/errors.ts';
import type { Parsed, SecretConfig } from './schema.ts';
import type { Config, ConfigSource, ParsedUpstream } from './types.ts';

/** Resolves a path of the configuration; a leading `~` is the home directory. */
export function resolvePath(directory: string, path: string): string {
  return resolve(directory, path.replace(/^~(?=\/|$)/, homedir()));
}

/** Resolves a secret. A file is only checked here: it is read whenever the secret is needed. */
export function readSecret(
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

/** Reads certificates and keys as text, so that a changed file is a changed configuration. */
export function readPems(
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
    problems.push(`${at}: cannot use ca, cert and key: ${(error as Error).message}`);
  }
  return pems;
}

/** Resolves TLS and htpasswd files. They are only checked here: the server reads them again when they change. */
export function resolveClients(
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
