import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { hexOf, type Digest } from '../../oci/digest.ts';
import type { Logger } from '../../telemetry/log.ts';
import type { Clock } from '../../util/clock.ts';
import { Slots } from '../../util/slots.ts';
import type { WorkerThread } from '../../util/worker.ts';
import type { Catalog } from '../catalog/catalog.ts';
import type { Health } from '../disk/health.ts';
import { ingestPath } from '../disk/layout.ts';
import type { Buffers } from '../reading/buffers.ts';
import type { Evictor } from '../room/evictor.ts';
import type { CatalogLog } from '../upkeep/catalog-log.ts';
import { GrowingFile, type GrowingFileContext } from './growing-file.ts';
import { Ingest, type IngestOwner } from './ingest.ts';
import { Partials } from './partials.ts';
import type { Verifier } from './verifier.ts';

export interface IngestsParts {
  /** The data directory. */
  readonly root: string;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly clock: Clock;
  readonly log: Logger;
  readonly health: Health;
  readonly verifier: Verifier;
  readonly buffers: Buffers;
  /** For blocking disk access. */
  readonly worker: WorkerThread;
}

const maxWritesAtOnce = 8;

/** Running ingests, and what unfinished ones left. */
export class Ingests implements IngestOwner {
  readonly verifier: Verifier;
  readonly buffers: Buffers;
  readonly partials: Partials;
  readonly #directory: string;
  readonly #files: GrowingFileContext;
  readonly #running = new Set<Ingest>();

  constructor({ root, catalog, catalogLog, clock, log, health, verifier, buffers, worker }: IngestsParts) {
    this.verifier = verifier;
    this.buffers = buffers;
    this.#directory = ingestPath(root);
    this.partials = new Partials(this.#directory, { catalog, clock, log });
    const writes = new Slots(maxWritesAtOnce);
    this.#files = { clock, buffers, writes, catalogLog, worker, partials: this.partials, health };
  }

  get isRunning(): boolean {
    return this.#running.size > 0;
  }

  /** Whether a running ingest fetches the digest. */
  isFetching(digest: Digest): boolean {
    for (const ingest of this.#running) if (ingest.digest === digest) return true;
    return false;
  }

  /** Disk use of ingests, running or unfinished. */
  get pendingBytes(): number {
    let total = this.partials.bytes;
    for (const ingest of this.#running) total += ingest.pendingBytes;
    return total;
  }

  /**
   * Starts a growing file, which resumes from what an earlier ingest from the same registry left. The evictor is an
   * argument because it depends on this object.
   */
  start(
    {
      registry,
      digest,
      onReadersChanged,
    }: { registry: string; digest: Digest; onReadersChanged: () => void },
    evictor: Evictor,
  ): Ingest {
    const partial = this.partials.take(registry, digest);
    const { path, reservation } = partial ?? {
      path: this.newPath(digest),
      reservation: evictor.reservation(),
    };
    const file = new GrowingFile({ registry, digest, path, reservation }, this.#files, partial);
    const ingest = new Ingest(file, this, onReadersChanged);
    this.#running.add(ingest);
    return ingest;
  }

  closed(ingest: Ingest): void {
    this.#running.delete(ingest);
  }

  /** A new path in the ingest directory. */
  newPath(digest: Digest): string {
    return join(this.#directory, `${hexOf(digest).slice(0, 16)}-${randomBytes(4).toString('hex')}`);
  }
}
