import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { hostname } from 'node:os';
import type { Address } from '../config/schema.ts';
import { errorCode } from '../util/errors.ts';

/** Addresses that stand for all of this machine. */
const unspecified = new Set(['0.0.0.0', '::']);

/** Throws when it cannot listen there, with the remedy. */
export async function listen(server: Server, { host, port }: Address): Promise<void> {
  server.listen({ host, port });
  try {
    await once(server, 'listening');
  } catch (cause) {
    const remedy = remedyFor(errorCode(cause) ?? '');
    throw new Error(`cannot listen on ${showAddress({ host, port })}: ${remedy}`, { cause });
  }
}

function remedyFor(code: string): string {
  if (code === 'EADDRINUSE') return 'another program listens there: stop it, or choose another address';
  if (code === 'EACCES') return 'this user may not use that port: choose one above 1023';
  if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND')
    return 'this machine has no such address: use 0.0.0.0 for all of its addresses';
  return code;
}

export function boundAddress(server: Server): Address {
  const { address, port } = server.address() as AddressInfo;
  return { host: address, port };
}

export function showAddress({ host, port }: Address): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** The address by which other machines reach it, as far as this one knows. */
export function reachableAddress({ host, port }: Address): string {
  return showAddress({ host: unspecified.has(host) ? hostname() : host, port });
}
