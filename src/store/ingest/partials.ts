import { readdir, unlink } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Digest } from '../../oci/digest.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Clock } from '../../util/clock.ts';
import type { Catalog } from '../catalog/catalog.ts';
import type { DroppableFiles, Evictor } from '../room/evictor.ts';
import type { Reservation } from '../room/reservation.ts';
import { bootId, readIntervals, writeIntervals, type Journalled, type Leftover } from './journal.ts';

/** Partials not resumed within this time are deleted. */
const maxAgeMs = 24 * 60 * 60 * 1000;

/** What an unfinished ingest left. The bytes are unverified: they count only for the same registry and digest. */
export interface Partial extends Leftover {
  readonly registry: string;
  readonly digest: Digest;
  readonly reservation: Reservation;
  /** When the ingest ended, ms since the epoch. */
  readonly endedAt: number;
}

export interface PartialsContext {
  readonly catalog: Catalog;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Files of unfinished ingests, and the journal of these and of running ones. They survive restarts, count against the
 * cap, and are deleted before any blob is evicted.
 */
export class Partials implements DroppableFiles {
  readonly #directory: string;
  readonly #context: PartialsContext;
  readonly #boot = bootId();
  readonly #partials = new Map<string, Partial>();

  constructor(directory: string, context: PartialsContext) {
    this.#directory = directory;
    this.#context = context;
  }

  /** Disk use. */
  get bytes(): number {
    let total = 0;
    for (const { present } of this.#partials.values()) total += present.total;
    return total;
  }

  has(registry: string, digest: Digest): boolean {
    return this.#partials.has(keyOf(registry, digest));
  }

  /** Loads the partials of earlier processes, and deletes files without a journal entry. */
  async load(evictor: Evictor): Promise<void> {
    const files = new Set(await readdir(this.#directory));
    for (const row of this.#context.catalog.partials.all()) {
      const { registry, digest, size, updatedAt } = row;
      const synced = readIntervals(row.synced);
      // The page cache survives a kill -9, but not a power cut.
      const present = row.boot === this.#boot ? readIntervals(row.present) : synced;
      if (files.has(row.file) && present.total > 0) {
        files.delete(row.file);
        const reservation = evictor.reservation();
        reservation.adopt(present.total);
        const path = join(this.#directory, row.file);
        const partial = { registry, digest, path, size, present, synced, reservation, unproven: present };
        this.#partials.set(keyOf(registry, digest), {
          ...partial,
          isFromThisProcess: false,
          endedAt: updatedAt,
        });
      } else this.forget(row);
    }
    await Promise.all([...files].map((file) => unlink(join(this.#directory, file))));
    await this.sweep();
  }

  /** Hands the partial over to a new ingest. */
  take(registry: string, digest: Digest): Partial | undefined {
    const key = keyOf(registry, digest);
    const partial = this.#partials.get(key);
    this.#partials.delete(key);
    return partial;
  }

  /** Adds what an ingest left. */
  add(leftover: Omit<Partial, 'endedAt' | 'isFromThisProcess'>): void {
    const { registry, digest, path, size, present, synced, reservation, unproven } = leftover;
    reservation.shrinkTo(present.total);
    const endedAt = this.#context.clock.now();
    const about = { registry, digest, path, size, present, synced, unproven };
    const partial = { ...about, reservation, isFromThisProcess: true, endedAt };
    this.#partials.set(keyOf(registry, digest), partial);
    this.journal(partial);
  }

  journal({ registry, digest, path, size, present, synced }: Journalled): void {
    if (size === undefined) return;
    this.#try(digest, () => {
      this.#context.catalog.partials.set({
        registry,
        digest,
        file: basename(path),
        size,
        present: writeIntervals(present),
        synced: writeIntervals(synced),
        boot: this.#boot,
        updatedAt: this.#context.clock.now(),
      });
    });
  }

  forget({ registry, digest }: Pick<Partial, 'registry' | 'digest'>): void {
    this.#try(digest, () => this.#context.catalog.partials.remove(registry, digest));
  }

  /** See `DroppableFiles`. */
  async dropOldest(): Promise<boolean> {
    const [oldest] = this.#partials.values();
    if (oldest) await this.#drop(oldest);
    return oldest !== undefined;
  }

  async sweep(): Promise<void> {
    const limit = this.#context.clock.now() - maxAgeMs;
    for (const partial of this.#partials.values()) if (partial.endedAt < limit) await this.#drop(partial);
  }

  async #drop(partial: Partial): Promise<void> {
    const { registry, digest, path, reservation } = partial;
    this.#partials.delete(keyOf(registry, digest));
    this.forget(partial);
    await unlink(path).catch(() => undefined);
    reservation.release();
  }

  #try(digest: Digest, write: () => void): void {
    try {
      write();
    } catch (error) {
      this.#context.log.warn({ err: error, digest }, 'the journal of an ingest could not be written');
    }
  }
}

function keyOf(registry: string, digest: Digest): string {
  return `${registry} ${digest}`;
}
