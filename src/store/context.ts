import type { Digest } from '../oci/digest.ts';
import type { Pattern } from '../oci/pattern.ts';
import type { Logger } from '../telemetry/log.ts';
import type { Clock } from '../util/clock.ts';
import type { EvictionReason, RoomLimits } from './room/evictor.ts';

/** Limits that may change while the store is open. */
export interface StoreLimits extends RoomLimits {
  /** Patterns of images that are never evicted. */
  readonly pins: readonly Pattern[];
  /** How often all stored blobs are re-verified, in ms; 0: never. */
  readonly scrubEveryMs: number;
}

export interface StoreOptions {
  /** The data directory. */
  path: string;
  /** Current limits. */
  limits: () => StoreLimits;
  /** `false`: no periodic upkeep (idle eviction, flushing of uses, backup, scrub). Default: true. */
  upkeep?: boolean;
}

export interface StoreContext {
  readonly clock: Clock;
  readonly log: Logger;
  /** A tag moved or was removed. */
  readonly onTagChanged: (registry: string, repo: string, tag: string) => void;
  readonly onEvicted: (reason: EvictionReason) => void;
  /** Unneeded catalog rows were removed. */
  readonly onPruned: (table: 'links' | 'tags', rows: number) => void;
  /** A corrupt blob was removed from the store. */
  readonly onDamaged: (damaged: Damaged) => void;
}

export interface Damaged {
  readonly digest: Digest;
  readonly mediaType: string;
  /** A repo whose pin covers the blob; undefined: it is not pinned. */
  readonly pinnedFor: { readonly registry: string; readonly repo: string } | undefined;
}
