import { mkdir, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errorCode } from '../util/errors.ts';
import type { Logger } from '../util/log.ts';

/** Whether the disk takes what is written: said when it changes, and tried until it does again. */
export class Health {
  readonly #directory: string;
  readonly #log: Logger;
  #trouble: string | undefined;

  /** `directory`: where it is tried. */
  constructor(directory: string, log: Logger) {
    this.#directory = directory;
    this.#log = log;
  }

  /** What is wrong; undefined: nothing. */
  get trouble(): string | undefined {
    return this.#trouble;
  }

  failed(error: unknown): void {
    const why = `the store cannot be written (${errorCode(error) ?? 'unknown'})`;
    if (this.#trouble === undefined) {
      this.#log.error({ err: error }, `${why}: pulls go on past it, and what is missing is not kept`);
    }
    this.#trouble = why;
  }

  /** Tries to write, while there is trouble. */
  async probe(): Promise<void> {
    if (this.#trouble === undefined) return;
    const file = join(this.#directory, '.probe');
    try {
      await mkdir(this.#directory, { recursive: true });
      // As much as a manifest takes; an empty file fits on a full disk.
      await writeFile(file, Buffer.alloc(64 * 1024));
      await unlink(file);
      this.#trouble = undefined;
      this.#log.info('the store can be written again');
    } catch {
      await unlink(file).catch(() => undefined);
    }
  }
}
