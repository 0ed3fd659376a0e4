import { errorCode, isFault } from '../util/errors.ts';

/** Does it once more when it failed in a way that may pass at once, such as a connection that broke off. */
export async function tryTwice<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!isWorthARetry(error)) throw error;
    return await work();
  }
}

/** A host that does not even accept a connection would only cost the same time again. */
function isWorthARetry(error: unknown): boolean {
  if (!isFault(error, 'upstream-down', 'redirect-refused') || error.notAsked) return false;
  return errorCode(error.cause) !== 'UND_ERR_CONNECT_TIMEOUT' && errorCode(error.cause) !== 'ENOTFOUND';
}
