import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const root = join(import.meta.dirname, '../..');

/** A page's snippet under a `<!-- title -->`, with the address of the mirror replaced. */
export function snippet(page: string, title: string, mirror: string): string {
  const found = snippets(page, '\\w+', `<!-- ${title} -->\\n\\n`)[0];
  if (found === undefined) throw new Error(`${page} has no snippet ${title}`);
  return found.replaceAll('mirror:5000', mirror);
}

/** All snippets of a page in one language. */
export function snippets(page: string, language: string, before = ''): string[] {
  const text = readFileSync(join(root, page), 'utf8');
  const form = new RegExp(`${before}\`\`\`${language}\\n(.*?)\\n\`\`\``, 'gs');
  return [...text.matchAll(form)].map(([, content = '']) => content);
}
