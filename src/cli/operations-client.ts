import { request } from 'undici';
import type { Config } from '../config/types.ts';
import { secretReader } from '../upstream/accounts/credentials.ts';
import { OperationError } from '../util/errors.ts';

/** Loopback addresses to connect to in place of wildcard addresses. */
const callable: Readonly<Record<string, string>> = { '0.0.0.0': '127.0.0.1', '::': '[::1]' };

/** Runs an operation through the admin API of the running mirror. Throws the error that it returns. */
export async function callRunningMirror(
  { adminListen, adminToken }: Config,
  operation: string,
  args: object,
): Promise<unknown> {
  if (!adminListen) throw new Error('a mirror is running on this store with adminListen off: stop it first');
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
    throw new Error(`the running mirror does not answer at its adminListen, ${name}:${port}`, { cause });
  });
  const text = await body.text();
  let answer: { error?: string } | undefined;
  try {
    answer = JSON.parse(text) as { error?: string };
  } catch (cause) {
    if (statusCode === 200)
      throw new Error(`the answer of ${name}:${port} is not JSON; is it a mirror?`, { cause });
  }
  if (statusCode === 200 && answer) return answer;
  throw new OperationError(`the running mirror: ${answer?.error ?? `HTTP status ${statusCode}`}`);
}
