import { setImmediate as yieldToEventLoop } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { blobMediaType } from '../../oci/content.ts';
import type { Digest } from '../../oci/digest.ts';
import { Pattern } from '../../oci/pattern.ts';
import { signatureTags, subjectOf } from '../../oci/signatures.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Clock } from '../../util/clock.ts';
import { OperationError } from '../../util/errors.ts';
import { Serial } from '../../util/serial.ts';
import { atOnce, inSteps } from '../../util/steps.ts';
import { formatSize } from '../../util/units.ts';
import type { Catalog } from '../catalog/catalog.ts';
import { footprint } from '../catalog/tables/blobs.ts';
import type { Root } from '../catalog/tables/roots.ts';

export interface Pin {
  readonly pattern: string;
  /** Pinned by the configuration: cannot be removed by command. */
  readonly isConfigured: boolean;
}

const refreshAfterMs = 250;
/** Scans take at most a fifth of the time. */
const idleShare = 4;
const rootsAtOnce = 200;
const pinnedAtOnce = 500;
const flagsAtOnce = 50;
/** Successive scans that may leave pins in place because tags moved meanwhile. */
const maxPostponed = 5;

interface Reachable {
  /** Stored blobs that the patterns reach. */
  readonly digests: ReadonlySet<Digest>;
  readonly bytes: number;
}

interface PinLimits {
  readonly pins: readonly Pattern[];
  readonly maxBytes: number;
}

/** Pinned images are never evicted, with their stored platform manifests, configs, layers and signatures. */
export class Pins {
  #configured: readonly Pattern[];
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #limits: () => PinLimits;
  #patterns: Pattern[] = [];
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;
  /** Scans and changes. */
  readonly #serial = new Serial();
  /** The running scan: its patterns, blobs stored since it began, and number of matching tags moved since. */
  #scan: { patterns: readonly Pattern[]; stored: Set<Digest>; moved: number } | undefined;
  #scanMs = 0;
  #postponed = 0;
  /** Disk use of pinned blobs, as of the last scan. */
  bytes = 0;

  /** Throws `OperationError` when the configured pins do not fit under `maxBytes`. */
  constructor(
    limits: () => PinLimits,
    { catalog, clock, log }: { catalog: Catalog; clock: Clock; log: Logger },
  ) {
    const { pins, maxBytes } = limits();
    this.#configured = pins;
    this.#log = log;
    this.#catalog = catalog;
    this.#clock = clock;
    this.#limits = limits;
    this.#patterns = this.#allPatterns();
    // Nothing else runs yet: no need to yield.
    const { digests, bytes } = atOnce(this.#reachable(this.#patterns));
    const before = atOnce(this.#pinned());
    catalog.pins.setPinned(
      [...digests].filter((digest) => !before.has(digest)),
      [...before].filter((digest) => !digests.has(digest)),
    );
    this.bytes = bytes;
    if (bytes <= maxBytes) return;
    // Pins added by command can be removed by command; configured ones cannot.
    const configuredBytes = atOnce(this.#reachable(pins)).bytes;
    if (configuredBytes > maxBytes)
      throw new OperationError(`store.pins: ${tooLarge(configuredBytes, maxBytes)}`);
    log.warn(`pins: ${tooLarge(bytes, this.#limits().maxBytes)}`);
  }

  /**
   * Takes over other configured pins, ahead of the cap that comes with them. Rejects with `OperationError`, and nothing changes,
   * when they do not fit under it.
   */
  async takeOver({ pins, maxBytes }: PinLimits): Promise<void> {
    await this.#serial.run(async () => {
      if (isDeepStrictEqual(pins, this.#configured) && this.bytes <= maxBytes) return;
      const patterns = this.#allPatterns(pins);
      await this.#applyPins(patterns, async (bytes) => {
        const configuredBytes = bytes <= maxBytes ? 0 : (await inSteps(this.#reachable(pins))).bytes;
        if (configuredBytes > maxBytes)
          throw new OperationError(`store.pins: ${tooLarge(configuredBytes, maxBytes)}`);
        if (bytes > maxBytes) this.#log.warn(`pins: ${tooLarge(bytes, maxBytes)}`);
        this.#configured = pins;
        this.#patterns = patterns;
      });
    });
  }

  list(): Pin[] {
    return listPins(this.#configured, this.#catalog.pins.patterns());
  }

  /** Rejects with `OperationError`. Resolves to the pinned bytes. */
  pin(pattern: Pattern): Promise<number> {
    const { text } = pattern;
    return this.#serial.run(() => {
      const patterns = [...this.#patterns, pattern];
      return this.#applyPins(patterns, async (bytes) => {
        if (bytes > this.#limits().maxBytes)
          throw new OperationError(`${text}: ${tooLarge(bytes, this.#limits().maxBytes)}`);
        await this.#catalog.connection.queue.write(() => this.#catalog.pins.add(text, this.#clock.now()));
        this.#patterns = patterns;
      });
    });
  }

  /** As `pin`. */
  unpin({ text }: Pattern): Promise<number> {
    return this.#serial.run(async () => {
      if (this.#configured.some((each) => each.text === text))
        throw new OperationError(`${text}: pinned by the configuration, store.pins`);
      if (!(await this.#catalog.connection.queue.write(() => this.#catalog.pins.remove(text))))
        throw new OperationError(`${text}: not pinned`);
      this.#patterns = this.#allPatterns();
      return this.#applyPins(this.#patterns);
    });
  }

  /** A tag was added, moved or removed. */
  onTagChanged(registry: string, name: string, tag: string): void {
    const patterns = this.#scan?.patterns ?? this.#patterns;
    if (patterns.length === 0 || (this.#timer && !this.#scan)) return;
    const isMatch = patterns.some((pattern) => pattern.matches({ registry, name }, tag));
    if (!isMatch && subjectOf(tag) === undefined) return;
    if (this.#scan) this.#scan.moved += 1;
    this.#refreshSoon();
  }

  /** Pins a newly stored blob if a pin covers it. Never throws. */
  onStored(digest: Digest): void {
    this.#scan?.stored.add(digest);
    if (this.#patterns.length === 0) return;
    try {
      if (!this.#covers(digest)) return;
      this.#catalog.pins.setPinned([digest], []);
      // Children may have been stored before their manifest.
      this.#refreshSoon();
    } catch (error) {
      this.#log.warn({ err: error, digest }, 'cannot tell yet whether a blob is pinned');
      this.#refreshSoon();
    }
  }

  /** Scans all pins again, yielding to requests. Resolves to the pinned bytes. */
  refresh(): Promise<number> {
    return this.#serial.run(() => this.#applyPins(this.#patterns));
  }

  #refreshSoon(): void {
    if (this.#isClosed) return;
    this.#timer ??= setTimeout(
      () => {
        this.refresh().catch((error: unknown) => {
          if (!this.#isClosed) this.#log.warn({ err: error }, 'pins could not be scanned');
        });
      },
      Math.max(refreshAfterMs, idleShare * this.#scanMs),
    ).unref();
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    await this.#serial.idle();
  }

  /**
   * Scans, and sets the flags of blobs to match `patterns`; `accept` may refuse by throwing. Blobs stored during the
   * scan are checked at its end. A tag moved during the scan may have been missed: then nothing is unpinned before the
   * next scan.
   */
  async #applyPins(
    patterns: readonly Pattern[],
    accept: (bytes: number) => Promise<void> = () => Promise.resolve(),
  ): Promise<number> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const startedAt = performance.now();
    const scan = { patterns, stored: new Set<Digest>(), moved: 0 };
    this.#scan = scan;
    try {
      const before = await inSteps(this.#untilClosed(this.#pinned()));
      const { digests, bytes } = await inSteps(this.#untilClosed(this.#reachable(patterns)));
      await accept(bytes);
      await this.#flag([...digests.difference(before)], () => true, true);
      if (scan.moved > 0 && this.#postponed < maxPostponed) this.#postponed += 1;
      else {
        this.#postponed = 0;
        await this.#flag([...before.difference(digests)], (digest) => !scan.stored.has(digest), false);
      }
      this.bytes = bytes;
      return bytes;
    } finally {
      this.#scanMs = performance.now() - startedAt;
      this.#scan = undefined;
      if (scan.moved > 0) this.#refreshSoon();
      if (!this.#isClosed) await inSteps(this.#checkAgain(scan.stored));
    }
  }

  async #flag(
    digests: readonly Digest[],
    isWanted: (digest: Digest) => boolean,
    flag: boolean,
  ): Promise<void> {
    for (let at = 0; at < digests.length && !this.#isClosed; at += flagsAtOnce) {
      await this.#catalog.connection.queue.write(() => {
        const some = digests.slice(at, at + flagsAtOnce).filter(isWanted);
        this.#catalog.pins.setPinned(flag ? some : [], flag ? [] : some);
      });
      await yieldToEventLoop();
    }
  }

  *#checkAgain(stored: ReadonlySet<Digest>): Generator<undefined, undefined> {
    for (const digest of stored) {
      if (this.#isClosed) return;
      this.onStored(digest);
      yield;
    }
  }

  *#untilClosed<T>(work: Generator<undefined, T>): Generator<undefined, T> {
    for (;;) {
      if (this.#isClosed) throw new Error('the store is closing');
      const { done, value } = work.next();
      if (done) return value;
      yield;
    }
  }

  *#pinned(): Generator<undefined, ReadonlySet<Digest>> {
    const all = new Set<Digest>();
    for (let last = ''; ;) {
      const some = this.#catalog.pins.pinnedAfter(last, pinnedAtOnce);
      for (const digest of some) all.add(digest);
      last = some.at(-1) ?? last;
      if (some.length < pinnedAtOnce) return all;
      yield;
    }
  }

  *#reachable(patterns: readonly Pattern[]): Generator<undefined, Reachable> {
    const digests = new Set<Digest>();
    const seen = new Set<string>();
    let bytes = 0;
    for (const roots of this.#rootsInSteps(patterns)) {
      yield;
      for (const { registry, repo: name, digest: root } of roots) {
        const pending = [root];
        for (let digest = pending.pop(); digest !== undefined; digest = pending.pop()) {
          const key = `${registry}/${name}@${digest}`;
          const blob = seen.has(key) ? undefined : this.#catalog.blobs.get(digest);
          if (!blob) continue;
          seen.add(key);
          if (!digests.has(digest)) bytes += footprint(blob.size);
          digests.add(digest);
          if (blob.mediaType === blobMediaType) continue;
          for (const children of this.#catalog.children.stored(digest)) {
            pending.push(...children);
            yield;
          }
          for (const tag of signatureTags(digest)) {
            const row = this.#catalog.tags.get({ registry, name }, tag);
            if (row) pending.push(row.digest);
          }
        }
      }
    }
    return { digests, bytes };
  }

  /** Manifests that the patterns match, by tag or by digest. */
  *#rootsInSteps(patterns: readonly Pattern[]): Generator<Root[], undefined> {
    if (patterns.length === 0) return;
    const isMatch = ({ registry, repo, tag }: Root): boolean =>
      patterns.some((pattern) => pattern.matches({ registry, name: repo }, tag));
    for (const next of [
      (last: Root | undefined) => this.#catalog.roots.taggedAfter(last, rootsAtOnce),
      (last: Root | undefined) => this.#catalog.roots.linkedAfter(last, rootsAtOnce),
    ]) {
      for (let roots = next(undefined); roots.length > 0; roots = next(roots.at(-1)))
        yield roots.filter(isMatch);
    }
  }

  /** Whether a pattern matches the manifest, by tag or by digest. */
  #isRoot(digest: Digest): boolean {
    return this.#patterns.some((pattern) =>
      [
        ...this.#catalog.roots.tagged(pattern.glob, digest),
        ...this.#catalog.roots.linked(pattern.glob, digest),
      ].some(({ registry, repo, tag }) => pattern.matches({ registry, name: repo }, tag)),
    );
  }

  #covers(digest: Digest): boolean {
    if (this.#catalog.pins.hasPinnedParent(digest) || this.#isRoot(digest)) return true;
    // A signature is pinned with the image named in its tag.
    return this.#catalog.roots.tagsOf(digest).some(({ tag }) => {
      const subject = tag === undefined ? undefined : subjectOf(tag);
      if (subject === undefined) return false;
      return this.#catalog.blobs.withPrefix(subject).some((digest) => this.#catalog.pins.isPinned(digest));
    });
  }

  #allPatterns(configured = this.#configured): Pattern[] {
    return [...configured, ...this.#catalog.pins.patterns().flatMap((text) => Pattern.parse(text) ?? [])];
  }
}

function tooLarge(bytes: number, maxBytes: number): string {
  return `pinned images take ${formatSize(bytes)}, store.maxBytes is ${formatSize(maxBytes)}: remove pins, or raise store.maxBytes`;
}

/** Configured pins, then those added by command. */
export function listPins(configured: readonly Pattern[], added: readonly string[]): Pin[] {
  return [
    ...configured.map(({ text }) => ({ pattern: text, isConfigured: true })),
    ...added
      .filter((pattern) => configured.every(({ text }) => text !== pattern))
      .map((pattern) => ({ pattern, isConfigured: false })),
  ];
}
