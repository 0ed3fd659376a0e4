import { randomInt } from 'node:crypto';
import { Writable } from 'node:stream';
import { LRUCache } from 'lru-cache';
import type { Content } from '../oci/content.ts';
import { hashesTo, type Digest } from '../oci/digest.ts';
import type { ByteRange } from '../oci/range.ts';
import { isAnybodys, type Repo } from '../oci/repo.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Given } from '../upstream/answers.ts';
import { isFault, MirrorError } from '../util/errors.ts';
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

/** What is smaller is asked for as a whole. */
const wholeBytes = 1024 * 1024;
const samples = 3;
const sampleBytes = 64;
/** Places of which those are taken where there is most to be known: nobody guesses these, as they would zeros. */
const candidates = 24;
const maxRefused = 1000;
const refusedForMs = 10 * 60_000;

/**
 * Proofs that a repo has what is held already: the upstream says so for that repo. Whoever rents a registry may claim to
 * have anything; of those that a pattern covers, each has to show it.
 */
export class Proofs {
  readonly #context: ProofsContext;
  readonly #running = new Flight<string, boolean>();
  /** Who has shown something else lately. */
  readonly #refused = new LRUCache<string, MirrorError>({ max: maxRefused, ttl: refusedForMs });

  constructor(context: ProofsContext) {
    this.#context = context;
  }

  /**
   * Asks, and remembers a yes; `false`: it is not here any more. Throws why it is none. `deadline`: a new one for each
   * question.
   */
  ask(repo: Repo, digest: Digest, kind: 'blob' | 'manifest', deadline: () => AbortSignal): Promise<boolean> {
    const prove = async (): Promise<boolean> => {
      const given = await (kind === 'manifest'
        ? this.#manifest(repo, digest, deadline)
        : isAnybodys(repo)
          ? this.#shown(repo, digest, deadline())
          : this.#blob(repo, digest, deadline()));
      if (given) this.#context.access.confirm(repo, digest, given);
      return given !== undefined;
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

  /** Has the upstream show bytes that only who has it knows. Undefined: there is nothing here to compare them with. */
  async #shown(repo: Repo, digest: Digest, deadline: AbortSignal): Promise<Given | undefined> {
    const { store, fills } = this.#context;
    const what = `GET ${repo.key} blob ${digest}`;
    const refused = this.#refused.get(what);
    if (refused) throw refused;
    await fills.whole(digest, deadline).catch((cause: unknown) => {
      const why = `${what}: still on its way for another repository`;
      throw new MirrorError('upstream-busy', why, { cause, retryAfterMs: 5000 });
    });
    const held = store.open(digest);
    if (!held) return undefined;
    try {
      await held.prepare();
      const given = await this.#compare(repo, held, what, deadline);
      if (given) return given;
      const error = new MirrorError('digest-mismatch', `${what}: the upstream has other bytes`);
      this.#refused.set(what, error);
      throw error;
    } catch (error) {
      if (isFault(error, 'damaged')) return undefined;
      throw error;
    } finally {
      held.release();
    }
  }

  async #compare(repo: Repo, held: Content, what: string, signal: AbortSignal): Promise<Given | undefined> {
    const { client } = this.#context.upstreams.of(repo);
    const source = client.blobSource(repo, held.digest);
    const { size = 0 } = held;
    if (size <= wholeBytes) {
      const { body, isPublic } = await source.fetch(undefined, signal);
      const bytes = await body.bytes(wholeBytes, signal);
      return bytes && hashesTo(bytes, held.digest) ? { isPublic } : undefined;
    }
    let isPublic = true;
    for (const { range, bytes } of await telling(held, size)) {
      const said = await source.fetch(range, signal);
      if (said.start !== range.start || said.size !== size) {
        said.body.discard();
        throw new MirrorError('upstream-invalid', `${what}: the upstream gives no part of it`);
      }
      const theirs = await said.body.bytes(sampleBytes, signal);
      if (!theirs?.equals(bytes)) return undefined;
      isPublic &&= said.isPublic;
    }
    return { isPublic };
  }
}

/** Places where the bytes differ most among themselves. */
async function telling(content: Content, size: number): Promise<{ range: ByteRange; bytes: Buffer }[]> {
  const places = [];
  for (let i = 0; i < candidates; i++) {
    const start = randomInt(size - sampleBytes);
    const range = { start, end: start + sampleBytes };
    const bytes = await bytesOf(content, range);
    places.push({ range, bytes, kinds: new Set(bytes).size });
  }
  return places.sort((a, b) => b.kinds - a.kinds).slice(0, samples);
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
