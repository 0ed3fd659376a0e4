import type { Content, Descriptor } from '../oci/content.ts';
import { MemoryContent } from '../store/reading/stored-content.ts';
import type { Deadline } from '../util/deadline.ts';
import { isFault, MirrorError } from '../util/errors.ts';

/** Time to read what is served stale, when the deadline has passed while the upstream was asked. */
const leastReadMs = 1000;

/** The fault of a request whose deadline has passed. */
export function late(what: string): MirrorError {
  return new MirrorError('upstream-timeout', `${what}: not there in time (fetch.firstByteTimeout)`);
}

export function inTime<T>(work: Promise<T>, deadline: Deadline, what: string): Promise<T> {
  return deadline.before(work, () => late(what));
}

/** Content that can be sent. What comes after the deadline is released. */
export async function readyInTime(
  coming: Promise<Content>,
  deadline: Deadline,
  what: string,
): Promise<Content> {
  const ready = coming.then(prepared);
  try {
    return await inTime(ready, deadline, what);
  } catch (error) {
    coming.then(
      (content) => content.release(),
      () => undefined,
    );
    throw error;
  }
}

/** Whether it can be sent. `false`: it was damaged, has been released and dropped from the store, and is to be looked up again. */
export async function isReadable(held: Content | Descriptor, deadline: Deadline): Promise<boolean> {
  if (!('copyTo' in held)) return true;
  const ready = prepared(held);
  try {
    // Memory keeps nobody waiting; a disk that does not answer might, for ever.
    await (held instanceof MemoryContent
      ? ready
      : inTime(ready, deadline.atLeast(leastReadMs), `${held.digest} from the store's disk`));
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
