import { LRUCache } from 'lru-cache';
import { randomInt } from 'node:crypto';
import { Writable } from 'node:stream';
import type { Content } from '../../oci/content.ts';
import { hashesTo, type Digest } from '../../oci/digest.ts';
import { isPlausibleType, parseManifest, unnamedType } from '../../oci/manifest.ts';
import type { ByteRange } from '../../oci/range.ts';
import { isFromPattern, type Repo } from '../../oci/repo.ts';
import type { BlobStore } from '../../store/blob-store.ts';
import { readAtMost } from '../../upstream/http/transport.ts';
import type { Provenance } from '../../upstream/responses.ts';
import { tryTwice } from '../../upstream/try-twice.ts';
import type { Deadline } from '../../util/deadline.ts';
import { isFault, MirrorError } from '../../util/errors.ts';
import { Flight } from '../../util/flight.ts';
import type { Upstreams } from '../upstreams.ts';
import type { Links } from './links.ts';

export interface ProofsContext {
  readonly store: BlobStore;
  readonly links: Links;
  readonly upstreams: Upstreams;
}

/** Blobs up to this size are compared as a whole. */
const wholeBytes = 1024 * 1024;
const samples = 3;
const sampleBytes = 64;
/** Random samples drawn; those with the most distinct byte values are compared, since runs of zeros are guessable. */
const candidates = 24;
const maxMismatches = 1000;
const mismatchTtlMs = 10 * 60_000;

/**
 * Proves that a repo has content that is already stored. The upstream's confirmation suffices, except for registries
 * under a pattern: anyone can rent one and claim any digest, so such a registry must send matching bytes.
 */
export class Proofs {
  readonly #context: ProofsContext;
  readonly #running = new Flight<string, boolean>();
  /** Recent mismatches, by repo and digest. */
  readonly #mismatches = new LRUCache<string, MirrorError>({ max: maxMismatches, ttl: mismatchTtlMs });

  constructor(context: ProofsContext) {
    this.#context = context;
  }

  /**
   * Proves access to stored content and writes the link. Resolves to `false` if the content is no longer stored.
   * Throws the upstream's fault, or `digest-mismatch`.
   */
  stored(repo: Repo, digest: Digest, kind: 'blob' | 'manifest', deadline: Deadline): Promise<boolean> {
    const prove = async ({ signal }: Deadline): Promise<boolean> => {
      const size = this.#context.store.describe(digest)?.size;
      const proof = await (kind === 'manifest'
        ? this.#proveManifest(repo, digest, signal)
        : isFromPattern(repo)
          ? this.#proveByBytes(repo, digest, signal)
          : this.#proveByHead(repo, digest, size, signal));
      if (proof) this.#context.links.confirm(repo, digest, proof);
      return proof !== undefined;
    };
    return this.#shared(`${repo.key} ${kind} ${digest}`, deadline, prove);
  }

  /**
   * Proves access to content being fetched from the repo's own registry, or left by an earlier fill from it; `size` in
   * bytes, if known. The registry's word suffices, since all these bytes came from it. A registry under a pattern gets
   * no link: once the digest is stored, it must send bytes. Throws the upstream's fault.
   */
  async arriving(repo: Repo, digest: Digest, size: number | undefined, deadline: Deadline): Promise<boolean> {
    const prove = async ({ signal }: Deadline): Promise<boolean> => {
      const proof = await this.#proveByHead(repo, digest, size, signal);
      if (!isFromPattern(repo)) this.#context.links.confirm(repo, digest, proof);
      return true;
    };
    return this.#shared(`${repo.key} arriving ${digest}`, deadline, prove);
  }

  async #shared(
    key: string,
    deadline: Deadline,
    prove: (deadline: Deadline) => Promise<boolean>,
  ): Promise<boolean> {
    const timedOut = (): MirrorError =>
      new MirrorError('upstream-timeout', `${key}: not confirmed before the deadline`);
    const { value } = await this.#running.within(key, deadline, prove, timedOut);
    return value;
  }

  async #proveManifest(
    repo: Repo,
    digest: Digest,
    signal: AbortSignal,
  ): Promise<Provenance & { mediaType: string }> {
    const { client } = this.#context.upstreams.of(repo);
    const head = isFromPattern(repo) ? undefined : await client.head(repo, digest, signal);
    const { store } = this.#context;
    const stored = store.describe(digest);
    const isSame = head?.digest === digest && head.size === stored?.size;
    if (
      isSame &&
      (stored.mediaType !== unnamedType || isPlausibleType(head.mediaType, store.children(digest)))
    )
      return head;
    const { bytes, isPublic, mediaType, done } = await client.manifest(repo, digest, signal);
    try {
      parseManifest(bytes, mediaType, `${repo.key} manifest ${digest}`);
    } finally {
      done();
    }
    return { isPublic, mediaType };
  }

  async #proveByHead(
    repo: Repo,
    digest: Digest,
    expected: number | undefined,
    signal: AbortSignal,
  ): Promise<Provenance> {
    const { client } = this.#context.upstreams.of(repo);
    const { size, isPublic } = await client.headBlob(repo, digest, signal);
    if (expected === undefined || size === expected) return { isPublic };
    throw new MirrorError(
      'upstream-invalid',
      `${repo.key} blob ${digest}: ${size} bytes, expected ${expected}`,
    );
  }

  /** Compares bytes that the upstream sends with the stored bytes. Undefined: the blob is no longer readable here. */
  async #proveByBytes(repo: Repo, digest: Digest, signal: AbortSignal): Promise<Provenance | undefined> {
    const what = `GET ${repo.key} blob ${digest}`;
    const mismatch = this.#mismatches.get(what);
    if (mismatch) throw mismatch;
    const held = this.#context.store.open(digest);
    if (!held) return undefined;
    try {
      await held.prepare();
      // One broken connection must not fail a pull.
      const proof = await tryTwice(() => this.#compare(repo, held, what, signal));
      if (proof) return proof;
      const error = new MirrorError(
        'digest-mismatch',
        `${what}: the upstream's bytes differ from the stored bytes`,
      );
      this.#mismatches.set(what, error);
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
    for (const { range, bytes } of await pickSamples(held, size)) {
      const blob = await source.fetch(range, signal);
      if (blob.start !== range.start || blob.size !== size) {
        blob.body.discard();
        throw new MirrorError('upstream-invalid', `${what}: the upstream did not send the requested range`);
      }
      const theirs = await readAtMost({ what, signal }, blob.body, sampleBytes);
      if (!theirs?.equals(bytes)) return undefined;
      isPublic &&= blob.isPublic;
    }
    return { isPublic };
  }
}

/** Random ranges of the content, those with the most distinct byte values. */
async function pickSamples(content: Content, size: number): Promise<{ range: ByteRange; bytes: Buffer }[]> {
  const places = [];
  for (let i = 0; i < candidates; i++) {
    const start = randomInt(size - sampleBytes);
    const range = { start, end: start + sampleBytes };
    const bytes = await bytesOf(content, range);
    places.push({ range, bytes, kinds: new Set(bytes).size });
  }
  return places.sort((a, b) => b.kinds - a.kinds).slice(0, samples);
}

/** Reads a small range into memory. */
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
