import type { Command, Option } from 'commander';
import { resolve } from 'node:path';
import { z } from 'zod';
import type { Config } from '../config/types.ts';
import { operations } from '../store/operations/operations.ts';
import { rebuildCatalog } from '../store/upkeep/rebuild.ts';
import { counted, formatSize } from '../util/units.ts';
import { print, show, write } from './output.ts';
import { mustExist, perform } from './perform.ts';
import { repair, verify } from './verify.ts';

type Options = Readonly<Record<string, unknown>> & { readonly config?: string; readonly json?: boolean };

/** `layercache store …`: one command per operation, and the commands that work on files only. */
export function addStoreCommands(
  program: Command,
  configOption: () => Option,
  readConfig: (file: string | undefined) => Config | undefined,
): void {
  // The reader may close the pipe early (`head`).
  process.stdout.on('error', () => process.exit(0));
  const store = program.command('store').description('inspect, pin, verify or purge stored images');
  const command = (usage: string, description: string): Command =>
    store.command(usage).description(description).addOption(configOption()).option('--json', 'print JSON');
  const act = (made: Command, work: (config: Config, options: Options, args: string[]) => Promise<void>) =>
    made.action(async () => {
      const options = made.opts<Options>();
      const config = readConfig(options.config);
      if (!config) return;
      try {
        await work(config, options, made.args);
      } catch (error) {
        const problem = error instanceof z.ZodError ? z.prettifyError(error) : (error as Error).message;
        process.stderr.write(`layercache: ${problem}\n`);
        process.exitCode = 1;
      }
    });

  for (const [name, { summary, usage, options = [], paths = [] }] of Object.entries(operations)) {
    if (summary === undefined) continue;
    const made = command(usage === undefined ? name : `${name} ${usage}`, summary);
    for (const [flags, description] of options) made.option(flags, description);
    act(made, async (config, { config: _, json, ...flags }, values) => {
      const given = made.registeredArguments.map((argument, i) => [argument.name(), values[i]] as const);
      const args: Record<string, unknown> = { ...flags };
      for (const [key, value] of given)
        if (value !== undefined) args[key] = paths.includes(key) ? resolve(value) : value;
      const { result, prepared } = await perform(config, name, args);
      const shown = prepared.show(result);
      if (!json) show(shown);
      else {
        print(prepared.toJson(result));
        if (shown.isFailed === true) process.exitCode = 1;
      }
    });
  }

  act(
    command('verify', 'read and hash every blob; exit code 1 if damaged blobs remain').option(
      '--repair',
      'quarantine damaged blobs, so that they are fetched again',
    ),
    async (config, { json, ...options }) => {
      const verified = await verify(config);
      const { damaged, blobs, bytes } = verified;
      const quarantined = options['repair'] ? await repair(config, verified) : 0;
      if (json) print({ blobs, bytes, damaged, quarantined });
      else {
        for (const { digest, why } of damaged) write(`${digest}: ${why}`);
        const repaired = options['repair'] ? `, ${quarantined} quarantined` : '';
        write(`${counted(blobs, 'blob')}, ${formatSize(bytes)} read: ${damaged.length} damaged${repaired}`);
      }
      if (damaged.length > quarantined) process.exitCode = 1;
    },
  );

  act(
    command('rebuild', 'build a new catalog from its backup and the blob files; the mirror must be stopped'),
    async ({ store: { path } }, { json }) => {
      mustExist(path);
      const rebuilt = await rebuildCatalog(path, Date.now());
      if (json) {
        print(rebuilt);
        return;
      }
      const { base, found, lost, keptAs } = rebuilt;
      const source = base === 'nothing' ? 'the blob files' : `the ${base} and the blob files`;
      write(`built from ${source}: ${counted(found, 'file')} found, ${lost} lost`);
      if (keptAs !== undefined) write(`the damaged catalog was renamed to ${keptAs}`);
    },
  );
}
