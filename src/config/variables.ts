import { closest, distance } from 'fastest-levenshtein';
import z from 'zod';
import { ConfigError, isObject, unwrap } from './problems.ts';
import { schema } from './schema.ts';
import type { ConfigSource } from './types.ts';

const variablePrefix = 'LAYERCACHE_';
/** Path of the configuration file; read by the command line, not a key. */
export const fileVariable = 'LAYERCACHE_CONFIG';
/** Set by Kubernetes for services named layercache (Kubernetes documentation, "Service", "Environment variables"). */
const kubernetesVariable =
  /_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)(_ADDR|_PORT|_PROTO)?$/;
/** Edit distance up to which an unknown variable counts as a misspelling. */
const maxTypoDistance = 3;

/**
 * Overrides keys with `LAYERCACHE_*` variables such as `LAYERCACHE_STORE_MAX_BYTES`. Returns the variables that match no
 * key. Throws `ConfigError` for a misspelt one.
 */
export function applyVariables(
  raw: Record<string, unknown>,
  env: ConfigSource['env'],
  source: string,
): string[] {
  const ignored: string[] = [];
  const problems: string[] = [];
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith(variablePrefix) || name === fileVariable || value === undefined) continue;
    const path = pathOf(schema, name.slice(variablePrefix.length));
    if (path) setAt(raw, path, value);
    else if (!kubernetesVariable.test(name)) {
      const meant = nearestVariableTo(name);
      if (meant === undefined) ignored.push(name);
      else
        problems.push(
          `the environment variable ${name} matches no key: did you mean ${meant}? Rename or unset it`,
        );
    }
  }
  if (problems.length > 0) throw new ConfigError(source, problems);
  return ignored;
}

function nearestVariableTo(name: string): string | undefined {
  // Keep list indices in the suggestion.
  const numbers = [...name.matchAll(/_(\d+)_/g)].map(([, digits]) => digits ?? '');
  const names = variablesOf(schema, variablePrefix.slice(0, -1)).map((each) => {
    const left = [...numbers];
    return each.replace(/_0(?=_)/g, () => `_${left.shift() ?? '0'}`);
  });
  const plain = (text: string): string => text.replaceAll('_', '');
  const same = names.find((each) => plain(each) === plain(name));
  if (same !== undefined) return same;
  const nearest = closest(name, names);
  return distance(name, nearest) <= maxTypoDistance ? nearest : undefined;
}

/** Names of all variables; of a list those of its first entry. */
function variablesOf(type: z.core.$ZodType, name: string): string[] {
  const inner = unwrap(type);
  if (inner instanceof z.ZodArray) {
    return isObject(unwrap(inner.element)) ? variablesOf(inner.element, `${name}_0`) : [];
  }
  if (!isObject(inner)) return [name];
  return Object.entries(inner.shape).flatMap(([key, child]) =>
    variablesOf(child, `${name}_${upperSnake(key)}`),
  );
}

function upperSnake(key: string): string {
  return key.replace(/[A-Z]/g, '_$&').toUpperCase();
}

/** The key path that the rest of a variable's name spells; scalars only. */
function pathOf(type: z.core.$ZodType, rest: string): (string | number)[] | undefined {
  const inner = unwrap(type);
  if (inner instanceof z.ZodArray) {
    const [, index, after] = /^(\d+)_(.+)$/.exec(rest) ?? [];
    const path = after === undefined ? undefined : pathOf(inner.element, after);
    return path && [Number(index), ...path];
  }
  if (!isObject(inner)) return undefined;
  for (const [key, child] of Object.entries(inner.shape)) {
    const nested = unwrap(child);
    const isScalar = !isObject(nested) && !(nested instanceof z.ZodArray);
    const name = upperSnake(key);
    if (rest === name && isScalar) return [key];
    const path = rest.startsWith(`${name}_`) ? pathOf(child, rest.slice(name.length + 1)) : undefined;
    if (path) return [key, ...path];
  }
  return undefined;
}

function setAt(raw: Record<string, unknown>, path: readonly (string | number)[], value: string): void {
  let at: Record<string | number, unknown> = raw;
  path.slice(0, -1).forEach((key, i) => {
    const next = at[key];
    if (typeof next !== 'object' || next === null) at[key] = typeof path[i + 1] === 'number' ? [] : {};
    at = at[key] as Record<string | number, unknown>;
  });
  at[path.at(-1) ?? ''] = value;
}
