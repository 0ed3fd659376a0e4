/**
 * The closed list of things that go wrong. Each row says what the client gets (HTTP status and OCI error code), how
 * loud the log is, whether the upstream call may be tried once more (`retry`), also in the middle of a blob (`resume`),
 * whether it is the upstream's definite no, and whether a tag that is held may be served as it was (`stale`). Everything
 * else in the program speaks of faults by name.
 */
export const faults = {
  'name-invalid': { status: 400, code: 'NAME_INVALID', level: 'debug' },
  'digest-invalid': { status: 400, code: 'DIGEST_INVALID', level: 'debug' },
  'request-invalid': { status: 400, code: 'UNSUPPORTED', level: 'debug' },
  'ranges-unsupported': { status: 400, code: 'RANGE_INVALID', level: 'debug' },
  /** A page of a list that is no number. */
  'page-invalid': { status: 400, code: 'PAGINATION_NUMBER_INVALID', level: 'debug' },
  'range-unsatisfiable': { status: 416, code: 'RANGE_INVALID', level: 'debug' },
  /** The client has not said who it is, or not rightly. */
  unauthorized: { status: 401, code: 'UNAUTHORIZED', level: 'info' },
  /** Not for this client: by its address, or by `allow` and `deny`. */
  denied: { status: 403, code: 'DENIED', level: 'info' },
  /** This client asks for too much. */
  'client-limited': { status: 429, code: 'TOOMANYREQUESTS', level: 'info' },
  'method-unsupported': { status: 405, code: 'UNSUPPORTED', level: 'debug' },
  'route-unknown': { status: 404, code: 'UNSUPPORTED', level: 'debug' },
  'registry-unknown': { status: 404, code: 'NAME_UNKNOWN', level: 'info' },
  'manifest-unknown': { status: 404, code: 'MANIFEST_UNKNOWN', level: 'debug', definite: true },
  'blob-unknown': { status: 404, code: 'BLOB_UNKNOWN', level: 'debug', definite: true },
  /** Unknown or private: the upstream does not tell which. */
  'repo-unknown': { status: 404, code: 'NAME_UNKNOWN', level: 'info', definite: true },
  /** The upstream cannot be reached, or answers with 5xx. */
  'upstream-down': {
    status: 503,
    code: 'UNAVAILABLE',
    level: 'warn',
    retry: true,
    stale: true,
    resume: true,
  },
  /** The upstream was reached and kept silent; not tried again, since silence is dear. */
  'upstream-timeout': { status: 504, code: 'UNAVAILABLE', level: 'warn', stale: true, resume: true },
  /** The upstream answers 429 to everything: its abuse limit. */
  'upstream-limited': { status: 429, code: 'TOOMANYREQUESTS', level: 'warn', stale: true, resume: true },
  /** All accounts have spent their pulls, as the upstream counts them. */
  'quota-spent': { status: 429, code: 'TOOMANYREQUESTS', level: 'info', stale: true },
  /** The upstream answers with something that is not what was asked for. */
  'upstream-invalid': { status: 502, code: 'UNKNOWN', level: 'error', stale: true, resume: true },
  /** A signed link, or the answer behind a redirect, was refused: a fresh one may do. */
  'redirect-refused': { status: 502, code: 'UNKNOWN', level: 'warn', retry: true, stale: true, resume: true },
  /** The upstream is this mirror itself, or leads back to it. */
  loop: { status: 508, code: 'UNSUPPORTED', level: 'error', stale: true },
  /** All connections to the upstream stayed busy until the deadline. */
  'upstream-busy': { status: 503, code: 'UNAVAILABLE', level: 'warn', stale: true, resume: true },
  /** The token server refuses the account that the configuration names. */
  'account-refused': { status: 503, code: 'UNAVAILABLE', level: 'error', stale: true },
  /** A realm, redirect or address that the network policy forbids. */
  'address-refused': { status: 502, code: 'UNKNOWN', level: 'error', stale: true },
  /** The bytes do not hash to the digest that they were asked for by. */
  'digest-mismatch': { status: 502, code: 'UNKNOWN', level: 'error', stale: true },
  /** A stored file is missing or has the wrong size. */
  damaged: { status: 500, code: 'UNKNOWN', level: 'error' },
  /** The store can hold no more, or cannot be written. */
  'store-full': { status: 503, code: 'UNAVAILABLE', level: 'error' },
  /** The client went away, or took no byte for too long. */
  'client-gone': { status: 499, code: 'UNKNOWN', level: 'debug' },
  /** More requests, or more open files, than this process can hold. */
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
  /** When it may be worth asking again. */
  retryAfterMs?: number | undefined;
  /** Nothing was asked, since it would have been in vain: no use in trying again at once. */
  notAsked?: boolean;
}

/**
 * What a client or an operator may meet. The message starts with what was being done to what, and carries no secret:
 * neither credentials nor the query of a signed link.
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

/** The fault behind any thrown value: a bug is `internal`. */
export function toMirrorError(error: unknown): MirrorError {
  if (error instanceof MirrorError) return error;
  return new MirrorError('internal', 'internal error', { cause: error });
}

export function isFault(error: unknown, ...names: Fault[]): error is MirrorError {
  return error instanceof MirrorError && names.includes(error.fault);
}

/** The system's or the library's error code (`ECONNREFUSED`, `ENOENT`, `UND_ERR_…`), if the value has one. */
export function errorCode(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null | undefined)?.code;
  return typeof code === 'string' ? code : undefined;
}

/** What an operator asked for cannot be done. The message names it and what would help. */
export class OperationError extends Error {
  override readonly name = 'OperationError';
}
