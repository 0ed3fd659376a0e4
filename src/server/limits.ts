import { LRUCache } from 'lru-cache';
import type { Clock } from '../util/clock.ts';
import { MirrorError } from '../util/errors.ts';
import { clientNetwork } from '../util/networks.ts';

export interface LimitsOptions {
  /** Infinity: no limit. */
  maxRequestsPerSecond: number;
  maxConnections: number;
}

interface Bucket {
  /** Tokens left. */
  left: number;
  /** Last refill, monotonic ms. */
  at: number;
}

const maxClients = 100_000;
/** A pull is a burst of requests. */
const burstSeconds = 5;

/** Request rate and connections per client: an IPv4 address or an IPv6 /64, the usual size of one customer's network. */
export class Limits {
  readonly #clock: Clock;
  readonly #buckets = new LRUCache<string, Bucket>({ max: maxClients });
  readonly #connections = new Map<string, number>();
  readonly #options: () => LimitsOptions;

  constructor(options: () => LimitsOptions, clock: Clock) {
    this.#options = options;
    this.#clock = clock;
  }

  /** Counts a request. Throws `client-limited`. */
  request(address: string): void {
    const { maxRequestsPerSecond: rate } = this.#options();
    if (rate === Infinity) return;
    const now = this.#clock.monotonic();
    const key = clientNetwork(address);
    const bucket = this.#buckets.get(key) ?? { left: rate * burstSeconds, at: now };
    bucket.left = Math.min(rate * burstSeconds, bucket.left + ((now - bucket.at) / 1000) * rate);
    bucket.at = now;
    this.#buckets.set(key, bucket);
    if (bucket.left < 1)
      throw new MirrorError('client-limited', `client ${address}: more than ${rate} requests a second`, {
        retryAfterMs: ((1 - bucket.left) / rate) * 1000,
      });
    bucket.left -= 1;
  }

  /** Counts a connection until `close` is called, once. `excess`: connections above the limit. */
  connection(address: string): { excess: number; close: () => void } {
    const key = clientNetwork(address);
    const count = (this.#connections.get(key) ?? 0) + 1;
    this.#connections.set(key, count);
    const close = (): void => {
      const left = (this.#connections.get(key) ?? 1) - 1;
      if (left > 0) this.#connections.set(key, left);
      else this.#connections.delete(key);
    };
    return { excess: Math.max(0, count - this.#options().maxConnections), close };
  }

  tooManyConnections(address: string): MirrorError {
    const { maxConnections } = this.#options();
    return new MirrorError('client-limited', `client ${address}: more than ${maxConnections} connections`, {
      retryAfterMs: 1000,
    });
  }
}
