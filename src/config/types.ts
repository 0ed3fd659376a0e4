import type { RegistryPattern } from '../mirror/registry-pattern.ts';
import type { TlsFiles } from '../server/tls.ts';
import type { Secret } from '../upstream/accounts/credentials.ts';
import type { ProxyOptions } from '../upstream/http/proxy.ts';
import type { Parsed } from './schema.ts';

export type { Address } from './schema.ts';

export type ParsedUpstream = Parsed['upstreams'][number];

/** A user name with its password, or with the file that has it; or nobody. */
export type AccountConfig =
  { readonly username: string; readonly password: Secret } | { readonly anonymous: true };

export interface AnyUpstreamConfig extends Omit<
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
