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
/** Nobody's: compared against where there is no such user, so that time does not tell who there is. */
const salted = 'CwTycUXWue0Thq9StjUM0uJ8i6nC0p0y1w6vO4iB2QdGkq1t3G5Wm';

/** Users and the bcrypt hashes of their passwords, from a file that is read again when it changes. */
export class Htpasswd {
  readonly #file: string;
  readonly #log: Logger;
  readonly #worker = new WorkerThread('htpasswd-worker', import.meta.url);
  readonly #unwatch: () => void;
  /** What was right or wrong a moment ago, under a key that this process alone can make. */
  readonly #verdicts = new LRUCache<string, boolean>({ max: maxRemembered, ttl: rememberedForMs });
  readonly #running = new Flight<string, boolean>();
  readonly #comparing = new Set<Promise<boolean>>();
  readonly #secret = randomBytes(32);
  #hashes: ReadonlyMap<string, string>;

  /** Throws when the file cannot be read, or has something else in it. */
  constructor(file: string, log: Logger) {
    this.#file = file;
    this.#log = log;
    this.#hashes = parseHtpasswd(readFileSync(file, 'utf8'));
    this.#unwatch = watchFiles([file], () => void this.#reload());
  }

  /** What is known, or on its way, at no cost; undefined: it has to be compared. */
  knows(user: string, password: string): boolean | Promise<boolean> | undefined {
    const key = this.#keyOf(user, password);
    return this.#verdicts.get(key) ?? this.#running.of(key);
  }

  async check(user: string, password: string): Promise<boolean> {
    const key = this.#keyOf(user, password);
    const hash = this.#hashes.get(user);
    const worker = this.#worker;
    const compare = async (): Promise<boolean> => {
      const isSame = await worker.call<boolean>('compare', { password, hash: hash ?? this.#nobody() });
      const isRight = isSame && hash !== undefined;
      this.#verdicts.set(key, isRight);
      return isRight;
    };
    const { outcome } = this.#running.run(key, compare);
    this.#comparing.add(outcome);
    return outcome.finally(() => this.#comparing.delete(outcome));
  }

  /** What is being compared is waited for. */
  async close(): Promise<void> {
    this.#unwatch();
    await Promise.allSettled(this.#comparing);
    await this.#worker.close();
  }

  /** As dear as the hashes of those that there are. */
  #nobody(): string {
    const [some = '$2b$10$'] = this.#hashes.values();
    return some.slice(0, '$2b$10$'.length) + salted;
  }

  async #reload(): Promise<void> {
    try {
      this.#hashes = parseHtpasswd(await readFile(this.#file, 'utf8'));
      this.#log.info({ users: this.#hashes.size }, 'clients.htpasswd was read again');
    } catch (error) {
      this.#log.error({ err: error }, 'clients.htpasswd cannot be used any more: it stays as it was');
    }
  }

  /** With the hash in it: a password that was changed is not remembered. */
  #keyOf(user: string, password: string): string {
    const parts = [user, this.#hashes.get(user) ?? '', password];
    return createHmac('sha256', this.#secret).update(JSON.stringify(parts)).digest('base64');
  }
}

/** Throws with the number of the line that is wrong; its text may be a secret. */
export function parseHtpasswd(text: string): Map<string, string> {
  const hashes = new Map<string, string>();
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const [, user, hash] =
      /^([^:]+):(\$2[aby]\$(?:0[4-9]|1[0-7])\$[./A-Za-z0-9]{53})$/.exec(line.trim()) ?? [];
    if (user === undefined || hash === undefined)
      throw new Error(
        `line ${i + 1}: found something else, expected user:hash with bcrypt (cost 4 to 17), as "htpasswd -B" makes it`,
      );
    hashes.set(user, hash);
  }
  return hashes;
}

/** What is wrong with the file; undefined: nothing. */
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
