import type { Content, Descriptor } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { Deadline } from '../util/deadline.ts';

/** How an answer was come by. */
export type Result = 'hit' | 'joined' | 'miss' | 'revalidated' | 'stale';

/** What a client is given. */
export interface Answer {
  readonly digest: Digest;
  readonly mediaType: string;
  /** Undefined while the upstream has not told. */
  readonly size: number | undefined;
  /** To be released by the caller. Absent in the answer to a HEAD. */
  readonly content?: Content;
  readonly result: Result;
  readonly reason?: string;
  /** Since the upstream last said that the tag points there. */
  readonly ageMs?: number;
}

export type Method = 'GET' | 'HEAD';

/** What a client asks, beside the name of the content. */
export interface Asked {
  readonly method: Method;
  /** Who asks: an address. */
  readonly client: string;
  /** Whether the client has the digest already (If-None-Match): then it is told so, and nothing is fetched for it. */
  readonly knows?: ((digest: Digest) => boolean) | undefined;
}

/** A question on its way: one deadline lies over everything before its first byte. */
export interface Question extends Asked {
  readonly deadline: Deadline;
}

/** It is told what the digest is, and nothing is opened or fetched for it. */
export function wantsNoBytes({ method, knows }: Asked, digest: Digest): boolean {
  return method === 'HEAD' || knows?.(digest) === true;
}

/** `held`: a lease on the content, or what is known of it where no bytes are wanted. */
export function answerWith(held: Content | Descriptor, result: Result): Answer {
  const { digest, mediaType, size } = held;
  return { digest, mediaType, size, result, ...('copyTo' in held && { content: held }) };
}
