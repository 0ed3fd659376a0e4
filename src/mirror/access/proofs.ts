import { LRUCache } from 'lru-cache';
import { randomInt } from 'node:crypto';
import { Writable } from 'node:stream';
import type { Content } from '../../oci/content.ts';
import { hashesTo, type Digest } from '../../oci/digest.ts';
import { mayBe, parseManifest, unnamedType } from '../../oci/manifest.ts';
import type { ByteRange } from '../../oci/range.ts';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import { readAtMost, type Provenance } from '../../upstream/answers.ts';
import { tryTwice } from '../../upstream/try-twice.ts';
import type { Deadline } from '../../util/deadline.ts';
import { isFault, MirrorError } from '../../util/errors.ts';
import { Flight } from '../../util/flight.ts';
import type { Upstreams } from '../upstreams.ts';
import type { Access } from './links.ts';

export interface ProofsContext {
  readonly store: BlobStore;
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
 * Proofs that a repo has what is here already: the upstream says so for that repo. Anybody may rent a registry that a
 * pattern covers and claim to have anything, so of what others have brought such a registry has to show the bytes.
 */
export class Proofs {
  readonly #context: ProofsContext;
  readonly #running = new Flight<string, boolean>();
  /** Who has shown other bytes lately. */
  readonly #refused = new LRUCache<string, MirrorError>({ max: maxRefused, ttl: refusedForMs });

  constructor(context: ProofsContext) {
    this.#context = context;
  }

  /** For stored content. Resolves to `true`, and remembers it; `false`: it is not stored any more. Throws why not. */
  stored(repo: Repo, digest: Digest, kind: 'blob' | 'manifest', deadline: Deadline): Promise<boolean> {
    const prove = async ({ signal }: Deadline): Promise<boolean> => {
      const size = this.#context.store.describe(digest)?.size;
      const given = await (kind === 'manifest'
        ? this.#manifest(repo, digest, signal)
        : isFromPattern(repo)
          ? this.#shown(repo, digest, signal)
          : this.#claimed(repo, digest, size, signal));
      if (given) this.#context.access.confirm(repo, digest, given);
      return given !== undefined;
    };
    return this.#once(`${repo.key} ${kind} ${digest}`, deadline, prove);
  }

  /**
   * For what is arriving from the repo's own registry, or was left by a fill from there, of `size` bytes if that is known:
   * a registry may say what it likes of bytes that it alone has brought. Of one under a pattern nothing is remembered,
   * since the digest may be stored by then, and others' bytes it has to show. Throws why not.
   */
  async arriving(repo: Repo, digest: Digest, size: number | undefined, deadline: Deadline): Promise<boolean> {
    const prove = async ({ signal }: Deadline): Promise<boolean> => {
      const given = await this.#claimed(repo, digest, size, signal);
      if (!isFromPattern(repo)) this.#context.access.confirm(repo, digest, given);
      return true;
    };
    return this.#once(`${repo.key} arriving ${digest}`, deadline, prove);
  }

  async #once(
    key: string,
    deadline: Deadline,
    prove: (deadline: Deadline) => Promise<boolean>,
  ): Promise<boolean> {
    const late = (): MirrorError => new MirrorError('upstream-timeout', `${key}: not confirmed in time`);
    const { value } = await this.#running.within(key, deadline, prove, late);
    return value;
  }

  async #manifest(
    repo: Repo,
    digest: Digest,
    signal: AbortSignal,
  ): Promise<Provenance & { mediaType: string }> {
    const { client } = this.#context.upstreams.of(repo);
    const said = isFromPattern(repo) ? undefined : await client.head(repo, digest, signal);
    const { store } = this.#context;
    const held = store.describe(digest);
    const isThis = said?.digest === digest && said.size === held?.size;
    if (isThis && (held.mediaType !== unnamedType || mayBe(said.mediaType, store.children(digest))))
      return said;
    const { bytes, isPublic, mediaType, done } = await client.manifest(repo, digest, signal);
    try {
      parseManifest(bytes, mediaType, `${repo.key} manifest ${digest}`);
    } finally {
      done();
    }
    return { isPublic, mediaType };
  }

  async #claimed(
    repo: Repo,
    digest: Digest,
    expected: number | undefined,
    signal: AbortSignal,
  ): Promise<Provenance> {
    const { client } = this.#context.upstreams.of(repo);
    const { size, isPublic } = await client.headBlob(repo, digest, signal);
    if (expected === undefined || size === expected) return { isPublic };
    throw new MirrorError('upstream-invalid', `${repo.key} blob ${digest}: ${size} bytes, not ${expected}`);
  }

  /** Has the upstream show bytes that only who has it knows. Undefined: there is nothing here to compare them with. */
  async #shown(repo: Repo, digest: Digest, signal: AbortSignal): Promise<Provenance | undefined> {
    const what = `GET ${repo.key} blob ${digest}`;
    const refused = this.#refused.get(what);
    if (refused) throw refused;
    const held = this.#context.store.open(digest);
    if (!held) return undefined;
    try {
      await held.prepare();
      // A connection that breaks off once is no reason to refuse a pull.
      const given = await tryTwice(() => this.#compare(repo, held, what, signal));
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

  async #compare(
    repo: Repo,
    held: Content,
    what: string,
    signal: AbortSignal,
  ): Promise<Provenance | undefined> {
    const { client } = this.#context.upstreams.of(repo);
    const source = client.blobSource(repo, held.digest);
    const { size = 0 } = held;
    if (size <= wholeBytes) {
      const { body, isPublic } = await source.fetch(undefined, signal);
      const bytes = await readAtMost({ what, signal }, body, wholeBytes);
      return bytes && hashesTo(bytes, held.digest) ? { isPublic } : undefined;
    }
    let isPublic = true;
    for (const { range, bytes } of await telling(held, size)) {
      const said = await source.fetch(range, signal);
      if (said.start !== range.start || said.size !== size) {
        said.body.discard();
        throw new MirrorError('upstream-invalid', `${what}: the upstream gives no part of it`);
      }
      const theirs = await readAtMost({ what, signal }, said.body, sampleBytes);
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
