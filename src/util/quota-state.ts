/** What is written down of a quota. Times in ms since the epoch. */
export interface QuotaState {
  readonly limit: number;
  readonly remaining: number;
  readonly windowMs: number;
  /** Whom the upstream counts: an address or an account's id. */
  readonly source: string;
  /** When the window began, as far as it has shown. */
  readonly risenAt: number;
  readonly observedAt: number;
  /** When the upstream said that pulls would be back. */
  readonly backAt: number | null;
}
