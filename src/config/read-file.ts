import { parse, printParseErrorCode, visit, type ParseError } from 'jsonc-parser';
import { readFileSync } from 'node:fs';
import { errorCode } from '../util/errors.ts';
import { ConfigError, isPlainValue, kindOf, show } from './problems.ts';

/** Reads JSON with comments and trailing commas. Throws `ConfigError`. */
export function readConfigFile(path: string, source: string, mustExist: boolean): Record<string, unknown> {
  let content: string;
  try {
    content = readFileSync(path, 'utf8');
  } catch (error) {
    if (errorCode(error) === 'ENOENT' && !mustExist) return {};
    throw new ConfigError(source, [`the file cannot be read (${errorCode(error) ?? 'unknown'})`]);
  }
  const text = content.replace(/^\uFEFF/, '');
  const errors: ParseError[] = [];
  const json: unknown = parse(text, errors, { allowTrailingComma: true });
  const [error] = errors;
  if (error) throw new ConfigError(source, [syntaxProblem(text, error)]);
  const repeated = repeatedKeys(text);
  if (repeated.length > 0) throw new ConfigError(source, repeated);
  if (isRecord(json)) return json;
  throw new ConfigError(source, [
    `found ${isPlainValue(json) ? show(json) : kindOf(json)}, expected an object`,
  ]);
}

/** Of a key that is given twice a parser silently takes the last; `__proto__` would set keys that nobody sees. */
function repeatedKeys(text: string): string[] {
  const problems: string[] = [];
  const objects: Set<string>[] = [];
  visit(text, {
    onObjectBegin: () => void objects.push(new Set()),
    onObjectEnd: () => void objects.pop(),
    onObjectProperty: (key, _offset, _length, line, column) => {
      const at = `line ${line + 1}, column ${column + 1}`;
      if (key === '__proto__') problems.push(`${at}: ${show(key)} is no key`);
      if (objects.at(-1)?.has(key))
        problems.push(`${at}: ${show(key)} is given a second time, expected once`);
      objects.at(-1)?.add(key);
    },
  });
  return problems;
}

/** Gives line and column, and quotes the line with secrets masked. */
function syntaxProblem(content: string, { error, offset }: ParseError): string {
  const before = content.slice(0, offset);
  const begin = before.lastIndexOf('\n') + 1;
  const line = before.split('\n').length;
  const column = offset - begin + 1;
  const [text = ''] = masked(content).slice(begin).split(/\r?\n/, 1);
  // Shorten long lines to the part around the column.
  const from = Math.max(0, column - 1 - contextBefore);
  const shown = text.slice(from, from + contextBefore + contextAfter).replaceAll('\t', ' ');
  const pointer = `${' '.repeat(column - 1 - from)}^`;
  return `line ${line}, column ${column}: not JSON: ${wordsOf(error)}\n    ${shown}\n    ${pointer}`;
}

const contextBefore = 60;
const contextAfter = 60;

/** Masks values of keys such as `password` and logins in URLs; keeps the length. */
function masked(content: string): string {
  const stars = (text: string): string => text.replace(/[^\n]/g, '*');
  return content
    .replace(
      /(["']?\w*(?:pass|pwd|secret|token|credential|login)\w*["']?\s*[:=]\s*)("(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|[^\s,[\]{}"']+)/gi,
      (_, key: string, value: string) => key + stars(value),
    )
    .replace(/(\/\/)([^\s"'/@]*@)/g, (_, slashes: string, login: string) => slashes + stars(login));
}

/** `CommaExpected` -> `comma expected`. */
function wordsOf(error: ParseError['error']): string {
  return printParseErrorCode(error)
    .replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)
    .trim();
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
