import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join, normalize, relative } from 'node:path';
import { describe, test } from 'node:test';

const root = join(import.meta.dirname, '../../src');
const folders = readdirSync(root, { recursive: true, withFileTypes: true }).filter((entry) =>
  entry.isDirectory(),
);
const files = readdirSync(root, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
  .map((entry) => relative(root, join(entry.parentPath, entry.name)));
const textOf = (file: string): string => readFileSync(join(root, file), 'utf8');

function importsOf(file: string): string[] {
  return [...textOf(file).matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)].map(([, to = '']) =>
    normalize(join(file, '..', to)),
  );
}

// Which room may import which is a rule of the linter (.eslint.rooms.js).
describe('the source', () => {
  test('has no import circle', () => {
    const done = new Set<string>();
    const visit = (file: string, path: readonly string[]): void => {
      assert.ok(!path.includes(file), [...path.slice(path.indexOf(file)), file].join(' -> '));
      if (done.has(file)) return;
      for (const to of importsOf(file)) visit(to, [...path, file]);
      done.add(file);
    };
    for (const file of files) visit(file, []);
    assert.equal(done.size, files.length);
  });

  test('has short files, small folders and a mirror on one screen', () => {
    const lines = files.map((file) => ({ file, lines: textOf(file).split('\n').length - 1 }));
    assert.deepEqual(
      lines.filter((each) => each.lines > 350),
      [],
    );
    assert.ok(lines.find(({ file }) => file === 'mirror/mirror.ts')!.lines < 200);
    for (const folder of ['.', ...folders.map((each) => relative(root, join(each.parentPath, each.name)))]) {
      const count = files.filter((file) => join(file, '..') === folder).length;
      assert.ok(count <= (folder === '.' ? 2 : 16), `${folder}: ${count} files`);
    }
  });
});
