/** Persisted state of an account's pull quota. Times in ms since the epoch. */
export interface QuotaState {
  readonly limit: number;
  readonly remaining: number;
  readonly windowMs: number;
  /** What the upstream counts by: an address or an account id. */
  readonly source: string;
  /** Earliest known start of the window. */
  readonly risenAt: number;
  readonly observedAt: number;
  /** When pulls are available again, as told by the upstream. */
  readonly backAt: number | null;
}
