import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { hostname } from 'node:os';
import type { Address } from '../config/schema.ts';
import { errorCode } from '../util/errors.ts';

/** Wildcard addresses. */
const unspecified = new Set(['0.0.0.0', '::']);

/** Starts listening. Throws an error with a remedy. */
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
  if (code === 'EADDRINUSE')
    return 'the address is in use: stop the other program, or choose another address';
  if (code === 'EACCES') return 'this user may not listen on that port: choose one above 1023';
  if (code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND')
    return 'this machine does not have that address: use 0.0.0.0 for all of its addresses';
  return code;
}

export function boundAddress(server: Server): Address {
  const { address, port } = server.address() as AddressInfo;
  return { host: address, port };
}

export function showAddress({ host, port }: Address): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** The address for clients on other machines: the host name in place of a wildcard address. */
export function reachableAddress({ host, port }: Address): string {
  return showAddress({ host: unspecified.has(host) ? hostname() : host, port });
}
