import { unwatchFile, watchFile } from 'node:fs';

const pollMs = 2000;

/**
 * Calls back when one of the files has changed, by looking at them: what is mounted into a container tells no events.
 * Returns how to stop.
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
