import { randomInt } from 'node:crypto';
import { Writable } from 'node:stream';
import type { Content } from '../oci/content.ts';
import type { Digest } from '../oci/digest.ts';
import type { ByteRange } from '../oci/range.ts';
import { isAnybodys, type Repo } from '../oci/repo.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Given } from '../upstream/answers.ts';
import { MirrorError } from '../util/errors.ts';
import { Flight } from '../util/flight.ts';
import type { Access } from './access.ts';
import type { Fills } from './fills.ts';
import type { Upstreams } from './upstreams.ts';

export interface ProofsContext {
  readonly store: BlobStore;
  readonly fills: Fills;
  readonly access: Access;
  readonly upstreams: Upstreams;
}

/** Nobody guesses so many. */
const sampleBytes = 64;

/**
 * Proofs that a repo has what is held already: the upstream says so for that repo. Whoever rents a registry may claim to
 * have anything; of those that a pattern covers, each has to show it.
 */
export class Proofs {
  readonly #context: ProofsContext;
  readonly #running = new Flight<string, true>();

  constructor(context: ProofsContext) {
    this.#context = context;
  }

  /** Asks, and remembers a yes. Throws why it is none. `deadline`: a new one for each question. */
  ask(repo: Repo, digest: Digest, kind: 'blob' | 'manifest', deadline: () => AbortSignal): Promise<true> {
    const prove = async (): Promise<true> => {
      const given = await (kind === 'manifest'
        ? this.#manifest(repo, digest, deadline)
        : isAnybodys(repo)
          ? this.#sample(repo, digest, deadline())
          : this.#blob(repo, digest, deadline()));
      this.#context.access.confirm(repo, digest, given);
      return true;
    };
    return this.#running.run(`${repo.key} ${kind} ${digest}`, prove).outcome;
  }

  async #manifest(repo: Repo, digest: Digest, deadline: () => AbortSignal): Promise<Given> {
    const { client } = this.#context.upstreams.of(repo);
    const said = isAnybodys(repo) ? undefined : await client.head(repo, digest, deadline());
    const isThis = said?.digest === digest && said.size === this.#context.store.describe(digest)?.size;
    return isThis ? said : client.manifest(repo, digest, deadline());
  }

  async #blob(repo: Repo, digest: Digest, deadline: AbortSignal): Promise<Given> {
    const { store, fills, upstreams } = this.#context;
    const { size, isPublic } = await upstreams.of(repo).client.headBlob(repo, digest, deadline);
    const held = store.describe(digest)?.size ?? fills.sizeOf(digest) ?? size;
    if (size === held) return { isPublic };
    throw new MirrorError('upstream-invalid', `${repo.key} blob ${digest}: ${size} bytes, not ${held}`);
  }

  /** Whether the upstream has bytes of it that only who has it knows. */
  async #sample(repo: Repo, digest: Digest, deadline: AbortSignal): Promise<Given> {
    const { store, fills, upstreams } = this.#context;
    const what = `GET ${repo.key} blob ${digest}`;
    await fills.whole(digest, deadline).catch((cause: unknown) => {
      const why = `${what}: still on its way for another repository`;
      throw new MirrorError('upstream-busy', why, { cause, retryAfterMs: 5000 });
    });
    const held = store.open(digest);
    if (!held) throw new MirrorError('upstream-busy', `${what}: it has just left`, { retryAfterMs: 1000 });
    try {
      await held.prepare();
      const { size = 0 } = held;
      const start = randomInt(Math.max(1, size - sampleBytes));
      const range = { start, end: Math.min(start + sampleBytes, size) };
      const source = upstreams.of(repo).client.blobSource(repo, digest);
      const said = await source.fetch(size === 0 ? undefined : range, deadline);
      const from = range.start - said.start;
      const theirs = (await said.body.first(from + range.end - range.start, deadline)).subarray(from);
      if (said.size === size && theirs.equals(await bytesOf(held, range))) return { isPublic: said.isPublic };
      throw new MirrorError('upstream-invalid', `${what}: the upstream has other bytes`);
    } finally {
      held.release();
    }
  }
}

/** Few bytes of content, in memory. */
async function bytesOf(content: Content, range: ByteRange): Promise<Buffer> {
  const chunks: Buffer[] = [];
  const sink = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      chunks.push(Buffer.from(chunk));
      done();
    },
  });
  await content.copyTo(sink, range);
  return Buffer.concat(chunks);
}
