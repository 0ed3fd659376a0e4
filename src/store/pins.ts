import type { Digest } from '../oci/digest.ts';
import { signatureTags, subjectOf } from '../oci/signatures.ts';
import { Pattern } from '../oci/pattern.ts';
import { blobMediaType } from '../oci/content.ts';
import type { Clock } from '../util/clock.ts';
import type { Logger } from '../util/log.ts';
import { formatSize } from '../util/units.ts';
import { footprint, type Catalog, type Root } from './catalog.ts';
import { OperationError, patternOf } from './operation-error.ts';

export interface Pin {
  readonly pattern: string;
  /** From the configuration, which alone can take it back. */
  readonly isConfigured: boolean;
}

const refreshAfterMs = 250;

/**
 * What stays whatever happens: images by pattern, with everything they reach that was ever asked for: index, platforms,
 * configuration, layers, signatures.
 */
export class Pins {
  readonly #configured: readonly string[];
  readonly #catalog: Catalog;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #maxBytes: number;
  #patterns: Pattern[] = [];
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;
  /** What is held and pinned, as it was when it was looked at last. */
  bytes = 0;

  /** Throws `OperationError` when what the configuration pins does not fit under `maxBytes`. */
  constructor(
    { pins, maxBytes }: { pins: readonly string[]; maxBytes: number },
    { catalog, clock, log }: { catalog: Catalog; clock: Clock; log: Logger },
  ) {
    this.#configured = pins;
    this.#log = log;
    this.#catalog = catalog;
    this.#clock = clock;
    this.#maxBytes = maxBytes;
    this.#patterns = this.#listed();
    const bytes = this.refresh();
    if (bytes <= maxBytes) return;
    // What was pinned while it ran can be taken back; what is configured cannot.
    const alone = this.#reach(parsed(pins)).bytes;
    if (alone > maxBytes) throw new OperationError(`store.pins: ${this.#tooMuch(alone)}`);
    log.warn(`pins: ${this.#tooMuch(bytes)}`);
  }

  list(): Pin[] {
    return listPins(this.#configured, this.#catalog.pins());
  }

  /** Throws `OperationError`. Returns the bytes that are pinned then. */
  pin(text: string): number {
    const pattern = patternOf(text);
    const { bytes } = this.#reach([...this.#patterns, pattern]);
    if (bytes > this.#maxBytes) throw new OperationError(`${text}: ${this.#tooMuch(bytes)}`);
    this.#catalog.addPin(text, this.#clock.now());
    this.#patterns.push(pattern);
    return this.refresh();
  }

  unpin(text: string): number {
    if (this.#configured.includes(text))
      throw new OperationError(`${text}: pinned by the configuration, store.pins`);
    if (!this.#catalog.removePin(text)) throw new OperationError(`${text}: not pinned`);
    this.#patterns = this.#listed();
    return this.refresh();
  }

  /** A tag points elsewhere. */
  changed(registry: string, name: string, tag: string): void {
    if (this.#patterns.length === 0 || this.#timer) return;
    const isMeant = this.#patterns.some((pattern) => pattern.matches({ registry, name }, tag));
    if (isMeant || subjectOf(tag) !== undefined) this.#refreshSoon();
  }

  /** Something new is held: it is pinned with what it belongs to. Never throws. */
  stored(digest: Digest): void {
    if (this.#patterns.length === 0) return;
    try {
      if (!this.#covers(digest)) return;
      this.#catalog.setPinned([digest], []);
      // What a manifest names may have been here before it.
      this.#refreshSoon();
    } catch (error) {
      this.#log.warn({ err: error, digest }, 'it is not known yet whether a blob is pinned');
      this.#refreshSoon();
    }
  }

  /** Looks at everything anew. Returns the bytes that are pinned. */
  refresh(): number {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const { held, bytes } = this.#reach(this.#patterns);
    const before = new Set(this.#catalog.pinned());
    this.#catalog.setPinned(
      [...held].filter((digest) => !before.has(digest)),
      [...before].filter((digest) => !held.has(digest)),
    );
    this.bytes = bytes;
    return bytes;
  }

  #refreshSoon(): void {
    if (this.#isClosed) return;
    this.#timer ??= setTimeout(() => {
      try {
        this.refresh();
      } catch (error) {
        this.#log.warn({ err: error }, 'pins could not be looked at anew');
        this.#timer = undefined;
      }
    }, refreshAfterMs).unref();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  #reach(patterns: readonly Pattern[]): { held: Set<Digest>; bytes: number } {
    const held = new Set<Digest>();
    const seen = new Set<string>();
    let bytes = 0;
    const visit = (digest: Digest, registry: string, name: string): void => {
      const key = `${registry}/${name}@${digest}`;
      const blob = this.#catalog.blob(digest);
      if (!blob || seen.has(key)) return;
      seen.add(key);
      if (!held.has(digest)) bytes += footprint(blob.size);
      held.add(digest);
      if (blob.mediaType === blobMediaType) return;
      for (const child of this.#catalog.children(digest)) visit(child.digest, registry, name);
      for (const tag of signatureTags(digest)) {
        const row = this.#catalog.tag({ registry, name }, tag);
        if (row) visit(row.digest, registry, name);
      }
    };
    for (const { registry, repo, digest } of this.#roots(patterns)) visit(digest, registry, repo);
    return { held, bytes };
  }

  /** The manifests that the patterns name, by tag or by digest; or whether they name this one. */
  #roots(patterns: readonly Pattern[], only?: Digest): Root[] {
    return patterns.flatMap((pattern) =>
      [...this.#catalog.tagged(pattern.glob, only), ...this.#catalog.linked(pattern.glob, only)].filter(
        ({ registry, repo, tag }) => pattern.matches({ registry, name: repo }, tag),
      ),
    );
  }

  #covers(digest: Digest): boolean {
    if (this.#catalog.hasPinnedParent(digest) || this.#roots(this.#patterns, digest).length > 0) return true;
    // A signature belongs to what its tag names.
    return this.#catalog.tagsOf(digest).some(({ tag }) => {
      const subject = tag === undefined ? undefined : subjectOf(tag);
      if (subject === undefined) return false;
      return this.#catalog.digestsWithPrefix(subject).some((digest) => this.#catalog.isPinned(digest));
    });
  }

  #listed(): Pattern[] {
    return parsed(this.list().map(({ pattern }) => pattern));
  }

  #tooMuch(bytes: number): string {
    return `what is pinned takes ${formatSize(bytes)}, store.maxBytes is ${formatSize(this.#maxBytes)}: pin less, or raise it`;
  }
}

/** Those of the configuration, and those that were pinned by command. */
export function listPins(configured: readonly string[], added: readonly string[]): Pin[] {
  return [
    ...configured.map((pattern) => ({ pattern, isConfigured: true })),
    ...added
      .filter((pattern) => !configured.includes(pattern))
      .map((pattern) => ({ pattern, isConfigured: false })),
  ];
}

function parsed(texts: readonly string[]): Pattern[] {
  return texts.flatMap((text) => Pattern.parse(text) ?? []);
}
