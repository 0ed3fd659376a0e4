import { closest, distance } from 'fastest-levenshtein';
import { z } from 'zod';
import { schema } from './schema.ts';

/** An invalid configuration: each problem names the key, the value found and the value expected. */
export class ConfigError extends Error {
  readonly problems: readonly string[];

  constructor(source: string, problems: readonly string[]) {
    super([`${source} cannot be used:`, ...problems.map((problem) => `  ${problem}`)].join('\n'));
    this.name = 'ConfigError';
    this.problems = problems;
  }
}

/** Messages for a schema issue. Hides values that may be secret. */
export function problemsOf(issue: z.core.$ZodIssue): string[] {
  const at = issue.path.reduce<string>(
    (path, key) =>
      typeof key === 'number' ? `${path}[${key}]` : path === '' ? String(key) : `${path}.${String(key)}`,
    '',
  );
  if (issue.code === 'unrecognized_keys') {
    const known = keysAt(issue.path);
    return issue.keys.map((key) => {
      const nearest = known.length > 0 ? closest(key, known) : '';
      const hint = nearest !== '' && distance(key, nearest) <= 3 ? `, did you mean ${show(nearest)}?` : '';
      return `${at === '' ? key : `${at}.${key}`}: unknown key${hint || `; known here: ${known.join(', ')}`}`;
    });
  }
  const isSecret = /password$|accounts|adminToken|proxy$/.test(at);
  const found =
    issue.input === undefined
      ? 'nothing'
      : isSecret
        ? 'something else'
        : isPlainValue(issue.input)
          ? show(issue.input)
          : kindOf(issue.input);
  return [`${at === '' ? 'the configuration' : at}: found ${found}, expected ${expectation(issue)}`];
}

function expectation(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_type')
    return issue.expected === 'array' ? 'a list' : `a value of type ${issue.expected}`;
  if (issue.code === 'invalid_value') return `one of ${issue.values.map((value) => show(value)).join(', ')}`;
  if (issue.code === 'invalid_union') return 'a string, { "env": "NAME" } or { "file": "path" }';
  if (issue.code === 'too_small' && issue.origin === 'string') return 'a non-empty string';
  return issue.message;
}

function keysAt(path: readonly PropertyKey[]): string[] {
  let type: z.core.$ZodType = unwrap(schema);
  for (const key of path) {
    if (type instanceof z.ZodArray) type = unwrap(type.element);
    else if (isObject(type)) type = unwrap(type.shape[String(key)] ?? type);
  }
  return isObject(type) ? Object.keys(type.shape) : [];
}

/** The value as JSON, without logins and queries of URLs, keys and password hashes; 100 characters at most. */
export function show(value: unknown): string {
  const text = JSON.stringify(value)
    .replace(/\/\/[^\s"]*@/g, '//…@')
    .replace(/\?[^"]*/g, '?…');
  return /-----BEGIN|\$2[aby]\$/.test(text) ? 'something else' : text.slice(0, 100);
}

export function isPlainValue(value: unknown): boolean {
  return typeof value !== 'object' || value === null || Object.keys(value).length === 0;
}

/** Names the type only: the content may be secret. */
export function kindOf(value: unknown): string {
  return Array.isArray(value) ? 'a list' : 'an object';
}

type Shape = Readonly<Record<string, z.core.$ZodType>>;

export function isObject(type: z.core.$ZodType): type is z.ZodObject<Shape> {
  return type instanceof z.ZodObject;
}

export function unwrap(type: z.core.$ZodType): z.core.$ZodType {
  let inner = type;
  while (inner instanceof z.ZodOptional || inner instanceof z.ZodDefault || inner instanceof z.ZodPrefault) {
    inner = inner.def.innerType;
  }
  return inner;
}
