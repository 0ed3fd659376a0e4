import { readFileSync } from 'node:fs';

const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

/** This program's version: its package.json lies beside `src` as beside `dist`. */
export const version = manifest.version;
