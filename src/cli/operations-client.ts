import { request } from 'undici';
import type { Config } from '../config/types.ts';
import { secretReader } from '../upstream/accounts/credentials.ts';
import { OperationError } from '../util/errors.ts';

/** Addresses to listen on that are no addresses to call. */
const callable: Readonly<Record<string, string>> = { '0.0.0.0': '127.0.0.1', '::': '[::1]' };

/** Has the mirror that is running on the store do an operation. Throws what it answers. */
export async function callRunningMirror(
  { adminListen, adminToken }: Config,
  operation: string,
  args: object,
): Promise<unknown> {
  if (!adminListen)
    throw new Error('a mirror is running on this store, and its adminListen is off: stop it first');
  const { host, port } = adminListen;
  const name = callable[host] ?? (host.includes(':') ? `[${host}]` : host);
  const token = adminToken === undefined ? undefined : await secretReader(adminToken)();
  const { statusCode, body } = await request(`http://${name}:${port}/api/${operation}`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      ...(token !== undefined && { authorization: `Bearer ${token}` }),
    },
    body: JSON.stringify(args),
    // Some operations take minutes.
    headersTimeout: 0,
    bodyTimeout: 0,
  }).catch((cause: unknown) => {
    throw new Error(`the running mirror does not answer at ${name}:${port}, its adminListen`, { cause });
  });
  const text = await body.text();
  let answer: { error?: string } | undefined;
  try {
    answer = JSON.parse(text) as { error?: string };
  } catch (cause) {
    if (statusCode === 200)
      throw new Error(`${name}:${port} answered with something else than JSON; is it a mirror?`, { cause });
  }
  if (statusCode === 200 && answer) return answer;
  throw new OperationError(`the running mirror: ${answer?.error ?? `HTTP status ${statusCode}`}`);
}
