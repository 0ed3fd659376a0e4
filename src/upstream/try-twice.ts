import { errorCode, isFault } from '../util/errors.ts';

/** Retries once at once, if the failure may be transient, such as a broken connection. */
export async function tryTwice<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!isWorthARetry(error)) throw error;
    return await work();
  }
}

/** Not after a connect timeout or a failed lookup: these would only take as long again. */
function isWorthARetry(error: unknown): boolean {
  if (!isFault(error, 'upstream-down', 'redirect-refused') || error.notAsked) return false;
  return errorCode(error.cause) !== 'UND_ERR_CONNECT_TIMEOUT' && errorCode(error.cause) !== 'ENOTFOUND';
}
