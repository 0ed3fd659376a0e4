import { LRUCache } from 'lru-cache';
import { createHmac, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { Logger } from '../telemetry/log.ts';
import { errorCode } from '../util/errors.ts';
import { Flight } from '../util/flight.ts';
import { watchFiles } from '../util/watch.ts';
import { WorkerThread } from '../util/worker.ts';
import { showPath } from './tls.ts';

const rememberedForMs = 5 * 60_000;
const maxRemembered = 10_000;
/** Salt and hash to compare with for unknown users, so that timing does not reveal which users exist. */
const dummyHash = 'CwTycUXWue0Thq9StjUM0uJ8i6nC0p0y1w6vO4iB2QdGkq1t3G5Wm';

/** Users and bcrypt hashes from an htpasswd file, reloaded when it changes. */
export class Htpasswd {
  readonly #file: string;
  readonly #log: Logger;
  readonly #worker = new WorkerThread('htpasswd-worker', import.meta.url);
  readonly #unwatch: () => void;
  /** Recent results by HMAC of user, hash and password. */
  readonly #verdicts = new LRUCache<string, boolean>({ max: maxRemembered, ttl: rememberedForMs });
  readonly #running = new Flight<string, boolean>();
  readonly #comparing = new Set<Promise<boolean>>();
  readonly #secret = randomBytes(32);
  #hashes: ReadonlyMap<string, string>;

  /** Throws if the file cannot be read or parsed. */
  constructor(file: string, log: Logger) {
    this.#file = file;
    this.#log = log;
    this.#hashes = parseHtpasswd(readFileSync(file, 'utf8'));
    this.#unwatch = watchFiles([file], () => void this.#reload());
  }

  /** The cached or pending result; undefined if the password must be compared. */
  cached(user: string, password: string): boolean | Promise<boolean> | undefined {
    const key = this.#keyOf(user, password);
    return this.#verdicts.get(key) ?? this.#running.of(key);
  }

  async check(user: string, password: string): Promise<boolean> {
    const key = this.#keyOf(user, password);
    const hash = this.#hashes.get(user);
    const worker = this.#worker;
    const compare = async (): Promise<boolean> => {
      const isSame = await worker.call<boolean>('compare', { password, hash: hash ?? this.#dummy() });
      const isRight = isSame && hash !== undefined;
      this.#verdicts.set(key, isRight);
      return isRight;
    };
    const { outcome } = this.#running.run(key, compare);
    this.#comparing.add(outcome);
    return outcome.finally(() => this.#comparing.delete(outcome));
  }

  /** Waits for pending comparisons. */
  async close(): Promise<void> {
    this.#unwatch();
    await Promise.allSettled(this.#comparing);
    await this.#worker.close();
  }

  /** A hash with the same bcrypt cost as the file's, so that it takes the same time. */
  #dummy(): string {
    const [some = '$2b$10$'] = this.#hashes.values();
    return some.slice(0, '$2b$10$'.length) + dummyHash;
  }

  async #reload(): Promise<void> {
    try {
      this.#hashes = parseHtpasswd(await readFile(this.#file, 'utf8'));
      this.#log.info({ users: this.#hashes.size }, 'clients.htpasswd reloaded');
    } catch (error) {
      this.#log.error({ err: error }, 'clients.htpasswd is invalid: keeping the previous users');
    }
  }

  /** Includes the hash: results for a changed password no longer match. */
  #keyOf(user: string, password: string): string {
    const parts = [user, this.#hashes.get(user) ?? '', password];
    return createHmac('sha256', this.#secret).update(JSON.stringify(parts)).digest('base64');
  }
}

/** User names to bcrypt hashes. Throws with the line number of an invalid line, without its text, which may be a secret. */
export function parseHtpasswd(text: string): Map<string, string> {
  const hashes = new Map<string, string>();
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const [, user, hash] =
      /^([^:]+):(\$2[aby]\$(?:0[4-9]|1[0-7])\$[./A-Za-z0-9]{53})$/.exec(line.trim()) ?? [];
    if (user === undefined || hash === undefined)
      throw new Error(
        `line ${i + 1}: expected user:hash with bcrypt (cost 4 to 17), as written by "htpasswd -B"`,
      );
    hashes.set(user, hash);
  }
  return hashes;
}

/** Why the file is invalid; undefined if it is valid. */
export function problemOfHtpasswd(file: string): string | undefined {
  try {
    parseHtpasswd(readFileSync(file, 'utf8'));
    return undefined;
  } catch (error) {
    const code = errorCode(error);
    return code === undefined
      ? (error as Error).message
      : `the file ${showPath(file)} cannot be read (${code})`;
  }
}
