import type { Content, Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Deadline } from '../util/deadline.ts';

/** How the answer was produced; sent as `X-Cache`. */
export type Result = 'hit' | 'joined' | 'miss' | 'revalidated' | 'stale';

/** The mirror's answer to a client request. */
export interface Answer {
  readonly digest: Digest;
  readonly mediaType: string;
  /** Bytes; undefined until the upstream has sent it. */
  readonly size: number | undefined;
  /** The caller must release it. Absent for HEAD. */
  readonly content?: Content;
  readonly result: Result;
  readonly reason?: string;
  /** Milliseconds since the upstream last confirmed that the tag points to this digest. */
  readonly ageMs?: number;
}

export type Method = 'GET' | 'HEAD';

/** A client's request, apart from repo and reference. */
export interface ClientRequest {
  readonly method: Method;
  /** IP address. */
  readonly client: string;
  /**
   * Whether the client has this digest already (If-None-Match): it is then sent no bytes, and nothing is fetched for
   * it.
   */
  readonly clientHas?: ((digest: Digest) => boolean) | undefined;
}

/** A request with its deadline, which covers everything before the first byte. */
export interface TimedRequest extends ClientRequest {
  readonly deadline: Deadline;
}

/** Whether the answer has no body (HEAD, or 304): then nothing is opened or fetched. */
export function wantsNoBytes({ method, clientHas }: ClientRequest, digest: Digest): boolean {
  return method === 'HEAD' || clientHas?.(digest) === true;
}

/** `held`: a lease on the content, or only its descriptor if no bytes are wanted. */
export function answerWith(held: Content | Descriptor, result: Result): Answer {
  const { digest, mediaType, size } = held;
  return { digest, mediaType, size, result, ...('copyTo' in held && { content: held }) };
}

/** For a GET a lease; what is known of it where no bytes are wanted. */
export function leaseFor(
  store: BlobStore,
  digest: Digest,
  request: ClientRequest,
): Content | Descriptor | undefined {
  return wantsNoBytes(request, digest) ? store.describe(digest) : store.open(digest);
}
