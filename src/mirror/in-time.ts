import type { Content, Descriptor } from '../oci/content.ts';
import { MemoryContent } from '../store/reading/stored-content.ts';
import type { Deadline } from '../util/deadline.ts';
import { isFault, MirrorError } from '../util/errors.ts';

/** Minimum time in ms to read stale content from disk after the upstream used up the deadline. */
const minReadMs = 1000;

/** The fault of a request whose deadline passed. */
export function deadlineExceeded(what: string): MirrorError {
  return new MirrorError('upstream-timeout', `${what}: deadline exceeded (fetch.firstByteTimeout)`);
}

export function beforeDeadline<T>(work: Promise<T>, deadline: Deadline, what: string): Promise<T> {
  return deadline.before(work, () => deadlineExceeded(what));
}

/** Content ready to be sent. Content that arrives after the deadline is released. */
export async function readyBeforeDeadline(
  coming: Promise<Content>,
  deadline: Deadline,
  what: string,
): Promise<Content> {
  const ready = coming.then(prepared);
  try {
    return await beforeDeadline(ready, deadline, what);
  } catch (error) {
    coming.then(
      (content) => content.release(),
      () => undefined,
    );
    throw error;
  }
}

/**
 * Whether the content can be sent. `false`: it was damaged and is released and removed from the store; look it up
 * again.
 */
export async function isReadable(held: Content | Descriptor, deadline: Deadline): Promise<boolean> {
  if (!('copyTo' in held)) return true;
  const ready = prepared(held);
  try {
    // Memory needs no deadline; a hung disk does.
    await (held instanceof MemoryContent
      ? ready
      : beforeDeadline(ready, deadline.atLeast(minReadMs), `${held.digest} from the store's disk`));
    return true;
  } catch (error) {
    if (isFault(error, 'damaged')) return false;
    ready.then(
      (content) => content.release(),
      () => undefined,
    );
    throw error;
  }
}

async function prepared(content: Content): Promise<Content> {
  try {
    await content.prepare();
    return content;
  } catch (error) {
    content.release();
    throw error;
  }
}
