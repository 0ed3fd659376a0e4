import { dirname, resolve } from 'node:path';
import { complete } from './complete.ts';
import { ConfigError, problemsOf } from './problems.ts';
import { readConfigFile } from './read-file.ts';
import { schema } from './schema.ts';
import type { Config, ConfigSource } from './types.ts';
import { applyVariables } from './variables.ts';

const defaultFile = 'mirror.config.json';

/** Reads the configuration from file and environment. Throws `ConfigError`. */
export function loadConfig({ file, env, directory }: ConfigSource): Config {
  const path = resolve(directory, file ?? defaultFile);
  const source = file ?? defaultFile;
  const raw = readConfigFile(path, source, file !== undefined);
  const ignoredVariables = applyVariables(raw, env, source);
  const parsed = schema.safeParse(raw, { reportInput: true });
  if (!parsed.success) throw new ConfigError(source, parsed.error.issues.flatMap(problemsOf));
  const problems: string[] = [];
  const config = complete(parsed.data, dirname(path), env, problems);
  if (problems.length > 0) throw new ConfigError(source, problems);
  return { ...config, ignoredVariables };
}
