import type { Digest } from '../oci/digest.ts';
import { isTagOfSignature, signatureTags } from '../oci/signatures.ts';
import { Pattern } from '../oci/pattern.ts';
import { createRepo } from '../oci/repo.ts';
import { blobMediaType } from '../oci/content.ts';
import type { Clock } from '../util/clock.ts';
import type { Logger } from '../util/log.ts';
import { formatSize } from '../util/units.ts';
import { footprint, type Catalog } from './catalog.ts';

export interface Pin {
  readonly pattern: string;
  /** From the configuration, which alone can take it back. */
  readonly isConfigured: boolean;
}

const refreshAfterMs = 100;

/** Patterns that cannot be pinned; the message says why. */
export class PinError extends Error {
  override readonly name = 'PinError';
}

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
  /** What is pinned, held or not, as it was when it was looked at last. */
  bytes = 0;

  /** Throws `PinError` when what is pinned does not fit under `maxBytes`. */
  constructor(
    { pins, maxBytes }: { pins: readonly string[]; maxBytes: number },
    { catalog, clock, log }: { catalog: Catalog; clock: Clock; log: Logger },
  ) {
    this.#configured = pins;
    this.#log = log;
    this.#catalog = catalog;
    this.#clock = clock;
    this.#maxBytes = maxBytes;
    this.#patterns = this.list().flatMap(({ pattern }) => Pattern.parse(pattern) ?? []);
    const bytes = this.refresh();
    if (bytes > maxBytes) throw new PinError(`store.pins: ${this.#tooMuch(bytes)}`);
  }

  list(): Pin[] {
    const configured = this.#configured.map((pattern) => ({ pattern, isConfigured: true }));
    const added = this.#catalog.pins().filter((pattern) => !this.#configured.includes(pattern));
    return [...configured, ...added.map((pattern) => ({ pattern, isConfigured: false }))];
  }

  /** Throws `PinError`. Resolves to the bytes that are pinned then. */
  pin(text: string): number {
    const pattern = Pattern.parse(text);
    if (!pattern) throw new PinError(`${text}: not a pattern such as "docker.io/library/alpine:3*"`);
    const { bytes } = this.#reach([...this.#patterns, pattern]);
    if (bytes > this.#maxBytes) throw new PinError(`${text}: ${this.#tooMuch(bytes)}`);
    this.#catalog.addPin(text, this.#clock.now());
    this.#patterns.push(pattern);
    return this.refresh();
  }

  unpin(text: string): number {
    if (this.#configured.includes(text))
      throw new PinError(`${text}: pinned by the configuration, store.pins`);
    if (!this.#catalog.removePin(text)) throw new PinError(`${text}: not pinned`);
    this.#patterns = this.list().flatMap(({ pattern }) => Pattern.parse(pattern) ?? []);
    return this.refresh();
  }

  /** A tag points elsewhere, or a repo has got something. */
  changed(registry: string, name: string, tag: string | undefined): void {
    if (this.#patterns.length === 0 || this.#timer) return;
    const repo = createRepo(registry, name);
    const isMeant = this.#patterns.some((pattern) => pattern.matches(repo, tag));
    if (isMeant || (tag !== undefined && isTagOfSignature(tag))) {
      this.#timer = setTimeout(() => this.#refreshLater(), refreshAfterMs).unref();
    }
  }

  /** Something new is held: whether it belongs to what is pinned. */
  covers(digest: Digest): boolean {
    if (this.#patterns.length === 0) return false;
    if (this.#catalog.hasPinnedParent(digest)) return true;
    return this.#roots(this.#patterns, digest).size > 0;
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

  #refreshLater(): void {
    try {
      this.refresh();
    } catch (error) {
      this.#log.warn({ err: error }, 'pins could not be looked at anew; it is tried again when a tag moves');
    }
  }

  close(): void {
    clearTimeout(this.#timer);
  }

  #reach(patterns: readonly Pattern[]): { held: Set<Digest>; bytes: number } {
    const held = new Set<Digest>();
    const expected = new Map<Digest, number>();
    const visit = (digest: Digest, registry: string, name: string): void => {
      const blob = this.#catalog.blob(digest);
      if (!blob || held.has(digest)) return;
      held.add(digest);
      expected.set(digest, footprint(blob.size));
      if (blob.mediaType === blobMediaType) return;
      for (const child of this.#catalog.children(digest)) {
        if (child.kind !== 'manifest' && !child.foreign) expected.set(child.digest, footprint(child.size));
        visit(child.digest, registry, name);
      }
      for (const tag of signatureTags(digest)) {
        const row = this.#catalog.tag({ registry, name, key: '' }, tag);
        if (row) visit(row.digest, registry, name);
      }
    };
    for (const [digest, { registry, repo }] of this.#roots(patterns)) visit(digest, registry, repo);
    let bytes = 0;
    for (const size of expected.values()) bytes += size;
    return { held, bytes };
  }

  /** The manifests that the patterns name, by tag or by digest; or whether they name this one. */
  #roots(patterns: readonly Pattern[], only?: Digest): Map<Digest, { registry: string; repo: string }> {
    const roots = new Map<Digest, { registry: string; repo: string }>();
    for (const pattern of patterns) {
      const rows = [...this.#catalog.tagged(pattern.glob, only), ...this.#catalog.linked(pattern.glob, only)];
      for (const { registry, repo, tag, digest } of rows) {
        if (pattern.matches(createRepo(registry, repo), tag)) roots.set(digest, { registry, repo });
      }
    }
    return roots;
  }

  #tooMuch(bytes: number): string {
    return `what is pinned takes ${formatSize(bytes)}, store.maxBytes is ${formatSize(this.#maxBytes)}: pin less, or raise it`;
  }
}
