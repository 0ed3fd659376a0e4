import type { Digest } from '../oci/digest.ts';
import type { Pattern } from '../oci/pattern.ts';
import type { Logger } from '../telemetry/log.ts';
import type { Clock } from '../util/clock.ts';
import type { EvictionReason, RoomLimits } from './room/evictor.ts';

/** What may change while the store is open. */
export interface StoreLimits extends RoomLimits {
  /** Patterns of what is never evicted. */
  readonly pins: readonly Pattern[];
  /** How often all stored blobs are re-verified; 0: never. */
  readonly scrubEveryMs: number;
}

export interface StoreOptions {
  /** The data directory. */
  path: string;
  /** As they are now. */
  limits: () => StoreLimits;
  /** `false`: nothing is evicted for being idle, written behind or backed up by itself. Default: true. */
  upkeep?: boolean;
}

export interface StoreContext {
  readonly clock: Clock;
  readonly log: Logger;
  /** A tag moves or goes: whoever maxRemembered it has to look again. */
  readonly onTagChanged: (registry: string, repo: string, tag: string) => void;
  readonly onEvicted: (reason: EvictionReason) => void;
  /** Rows of the catalog were removed, since they serve nobody. */
  readonly onPruned: (table: 'links' | 'tags', rows: number) => void;
  /** A stored blob was found wrong, and is gone from the store. */
  readonly onDamaged: (damaged: Damaged) => void;
}

export interface Damaged {
  readonly digest: Digest;
  readonly mediaType: string;
  /** Somebody it was pinned for; undefined: it was not. */
  readonly pinnedFor: { readonly registry: string; readonly repo: string } | undefined;
}
