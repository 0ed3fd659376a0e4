/**
 * All faults. Each row gives HTTP status, OCI error code and log level; `retry`: the upstream call is repeated once;
 * `resume`: a download may continue after it; `stale`: a stored tag may be served stale; `definite`: the upstream has
 * said that the content does not exist.
 */
export const faults = {
  'name-invalid': { status: 400, code: 'NAME_INVALID', level: 'debug' },
  'digest-invalid': { status: 400, code: 'DIGEST_INVALID', level: 'debug' },
  'request-invalid': { status: 400, code: 'UNSUPPORTED', level: 'debug' },
  'ranges-unsupported': { status: 400, code: 'RANGE_INVALID', level: 'debug' },
  /** Invalid `n` of a list request. */
  'page-invalid': { status: 400, code: 'PAGINATION_NUMBER_INVALID', level: 'debug' },
  'range-unsatisfiable': { status: 416, code: 'RANGE_INVALID', level: 'debug' },
  /** Missing or wrong client credentials. */
  unauthorized: { status: 401, code: 'UNAUTHORIZED', level: 'info' },
  /** Refused by `clients.allowFrom`, `allow` or `deny`. */
  denied: { status: 403, code: 'DENIED', level: 'info' },
  /** The client exceeds a limit of `clients`, or of password checks. */
  'client-limited': { status: 429, code: 'TOOMANYREQUESTS', level: 'info' },
  'method-unsupported': { status: 405, code: 'UNSUPPORTED', level: 'debug' },
  'route-unknown': { status: 404, code: 'UNSUPPORTED', level: 'debug' },
  'registry-unknown': { status: 404, code: 'NAME_UNKNOWN', level: 'info' },
  'manifest-unknown': { status: 404, code: 'MANIFEST_UNKNOWN', level: 'debug', definite: true },
  'blob-unknown': { status: 404, code: 'BLOB_UNKNOWN', level: 'debug', definite: true },
  /** Unknown or private: upstreams do not distinguish. */
  'repo-unknown': { status: 404, code: 'NAME_UNKNOWN', level: 'info', definite: true },
  /** The upstream is unreachable or answers 5xx. */
  'upstream-down': {
    status: 503,
    code: 'UNAVAILABLE',
    level: 'warn',
    retry: true,
    stale: true,
    resume: true,
  },
  /** The upstream accepted the request and did not answer in time. No retry: it would double the wait. */
  'upstream-timeout': { status: 504, code: 'UNAVAILABLE', level: 'warn', stale: true, resume: true },
  /** The upstream answers 429 to every request: its abuse limit. */
  'upstream-limited': { status: 429, code: 'TOOMANYREQUESTS', level: 'warn', stale: true, resume: true },
  /** All accounts have spent their pull quota. */
  'quota-spent': { status: 429, code: 'TOOMANYREQUESTS', level: 'info', stale: true },
  /** The upstream's answer is not what was requested. */
  'upstream-invalid': { status: 502, code: 'UNKNOWN', level: 'error', stale: true, resume: true },
  /** The target of a redirect (often a signed link) refused the request: a fresh redirect may work. */
  'redirect-refused': { status: 502, code: 'UNKNOWN', level: 'warn', retry: true, stale: true, resume: true },
  /** The upstream is this mirror itself, or leads back to it. */
  loop: { status: 508, code: 'UNSUPPORTED', level: 'error', stale: true },
  /** All connections to the upstream stayed busy until the deadline. */
  'upstream-busy': { status: 503, code: 'UNAVAILABLE', level: 'warn', stale: true, resume: true },
  /** The token server refuses a configured account. */
  'account-refused': { status: 503, code: 'UNAVAILABLE', level: 'error', stale: true },
  /** The network policy forbids the realm, redirect or address. */
  'address-refused': { status: 502, code: 'UNKNOWN', level: 'error', stale: true },
  /** The bytes do not hash to the requested digest. */
  'digest-mismatch': { status: 502, code: 'UNKNOWN', level: 'error', stale: true },
  /** A stored file is missing or has the wrong size. */
  damaged: { status: 500, code: 'UNKNOWN', level: 'error' },
  /** The store is full or not writable. */
  'store-full': { status: 503, code: 'UNAVAILABLE', level: 'error' },
  /** The client disconnected, or accepted no byte for too long. */
  'client-gone': { status: 499, code: 'UNKNOWN', level: 'debug' },
  /** Too many concurrent requests or open files. */
  overloaded: { status: 503, code: 'UNAVAILABLE', level: 'warn' },
  draining: { status: 503, code: 'UNAVAILABLE', level: 'debug' },
  internal: { status: 500, code: 'UNKNOWN', level: 'error' },
} as const satisfies Record<string, FaultRow>;

interface FaultRow {
  readonly status: number;
  readonly code: string;
  readonly level: 'debug' | 'info' | 'warn' | 'error';
  readonly retry?: true;
  readonly resume?: true;
  readonly stale?: true;
  readonly definite?: true;
}

export type Fault = keyof typeof faults;

export interface MirrorErrorOptions {
  cause?: unknown;
  /** For Retry-After, ms. */
  retryAfterMs?: number | undefined;
  /** No upstream request was made (breaker, quota): an immediate retry is pointless. */
  notAsked?: boolean;
}

/**
 * A fault that is reported to clients and operators. The message names the object and the operation, and has no secrets:
 * no credentials, no query of a signed link.
 */
export class MirrorError extends Error {
  readonly fault: Fault;
  readonly retryAfterMs: number | undefined;
  readonly notAsked: boolean;

  constructor(fault: Fault, message: string, options: MirrorErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'MirrorError';
    this.fault = fault;
    this.retryAfterMs = options.retryAfterMs;
    this.notAsked = options.notAsked === true;
  }

  get row(): FaultRow {
    return faults[this.fault];
  }
}

/** Any other thrown value becomes the fault `internal`. */
export function toMirrorError(error: unknown): MirrorError {
  if (error instanceof MirrorError) return error;
  return new MirrorError('internal', 'internal error', { cause: error });
}

export function isFault(error: unknown, ...names: Fault[]): error is MirrorError {
  return error instanceof MirrorError && names.includes(error.fault);
}

/** The error's `code` (`ECONNREFUSED`, `ENOENT`, `UND_ERR_…`), if it has one. */
export function errorCode(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null | undefined)?.code;
  return typeof code === 'string' ? code : undefined;
}

/** An operator's command cannot be done. The message gives the cause and a remedy. */
export class OperationError extends Error {
  override readonly name = 'OperationError';
}
