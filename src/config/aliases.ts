import type { UpstreamConfig } from './types.ts';

type Named = Pick<UpstreamConfig, 'registry' | 'aliases' | 'hosts'>;

/** The upstream that a name is an alias or a virtual host of. */
export function upstreamByAlias(upstreams: readonly Named[], name: string): Named | undefined {
  return upstreams.find(({ aliases, hosts }) => [...aliases, ...hosts].includes(name));
}

/** Arguments of an operation, with `pattern` under the name that its registry is configured by. */
export function withConfiguredRegistry(args: unknown, upstreams: readonly Named[]): unknown {
  if (typeof args !== 'object' || args === null || !('pattern' in args)) return args;
  const { pattern } = args;
  if (typeof pattern !== 'string') return args;
  const [name = '', ...rest] = pattern.split('/');
  const upstream = rest.length > 0 ? upstreamByAlias(upstreams, name) : undefined;
  return upstream ? { ...args, pattern: [upstream.registry, ...rest].join('/') } : args;
}
