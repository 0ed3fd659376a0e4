import { unwatchFile, watchFile } from 'node:fs';

const pollMs = 2000;

/**
 * Calls back when a file changes. Polls, since files mounted into a container may send no events. Returns a function that
 * stops watching.
 */
export function watchFiles(files: readonly string[], onChange: () => void): () => void {
  const listener = (
    now: { mtimeMs: number; ino: number },
    before: { mtimeMs: number; ino: number },
  ): void => {
    if (now.mtimeMs !== before.mtimeMs || now.ino !== before.ino) onChange();
  };
  for (const file of files) watchFile(file, { interval: pollMs, persistent: false }, listener);
  return () => {
    for (const file of files) unwatchFile(file, listener);
  };
}
