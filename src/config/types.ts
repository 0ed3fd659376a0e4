import type { RegistryPattern } from '../mirror/registry-pattern.ts';
import type { TlsFiles } from '../server/tls.ts';
import type { Secret } from '../upstream/accounts/credentials.ts';
import type { ProxyOptions } from '../upstream/http/proxy.ts';
import type { Parsed } from './schema.ts';

export type { Address } from './schema.ts';

export type ParsedUpstream = Parsed['upstreams'][number];

/** A user name with a password or password file, or anonymous access. */
export type AccountConfig =
  { readonly username: string; readonly password: Secret } | { readonly anonymous: true };

export interface AnyUpstreamConfig extends Omit<
  ParsedUpstream,
  'url' | 'aliases' | 'accounts' | 'realms' | 'proxy'
> {
  readonly proxy: ProxyOptions | undefined;
  readonly accounts: readonly AccountConfig[];
  readonly realms: readonly string[];
}

export interface UpstreamConfig extends AnyUpstreamConfig {
  readonly url: URL;
  readonly aliases: readonly string[];
}

/** Registries that match a pattern, each at `https://` followed by its name. */
export interface FamilyConfig extends AnyUpstreamConfig {
  readonly pattern: RegistryPattern;
}

/** The validated configuration with all defaults: durations in ms, sizes in bytes, absolute paths. */
export interface Config extends Omit<
  Parsed,
  'upstreams' | 'defaultUpstream' | 'adminToken' | 'tls' | 'clients'
> {
  readonly tls: TlsFiles | undefined;
  readonly clients: Omit<Parsed['clients'], 'htpasswd'> & { readonly htpasswd: string | undefined };
  /** Token for the operations of the admin API. */
  readonly adminToken: Secret | undefined;
  readonly upstreams: readonly UpstreamConfig[];
  readonly families: readonly FamilyConfig[];
  readonly defaultUpstream: string;
  /** Keys of patterns that name a registry that is not configured. */
  readonly unmatchedPatterns: readonly string[];
  /** `LAYERCACHE_*` environment variables that match no key. */
  readonly ignoredVariables: readonly string[];
}

export interface ConfigSource {
  /** A file that must exist. Undefined: `mirror.config.json`, if it exists. */
  file?: string | undefined;
  env: Readonly<Record<string, string | undefined>>;
  /** Base of relative paths when there is no file. */
  directory: string;
}
