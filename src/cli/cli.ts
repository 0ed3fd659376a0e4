import { Command, Option } from 'commander';
import { loadConfig } from '../config/load.ts';
import { ConfigError } from '../config/problems.ts';
import type { Config } from '../config/types.ts';
import { fileVariable } from '../config/variables.ts';
import { Service } from '../service/service.ts';
import { version } from '../version.ts';
import { addStoreCommands } from './store-commands.ts';

/** npm forwards signals that the process group has already received: a repeat within this time is ignored. */
const repeatIgnoredMs = 1000;

export async function run(argv: readonly string[]): Promise<void> {
  const program = new Command('layercache')
    .description('A pull-through caching mirror for Docker Hub and any other OCI registry.')
    .version(version);
  const configOption = (): Option =>
    new Option(
      '-c, --config <file>',
      'configuration file (default: mirror.config.json, if there is one)',
    ).env(fileVariable);
  program
    .command('serve')
    .description('run the mirror')
    .addOption(configOption())
    .action(async ({ config }: { config?: string }) => serve(config));
  addStoreCommands(program, configOption, readConfig);
  const [first, second] = argv.slice(2);
  const named = program.commands.find((each) => each.name() === first);
  const group = first === undefined ? program : second === undefined ? named : undefined;
  if (group && group.commands.length > 0) {
    group.outputHelp();
    return;
  }
  await program.parseAsync(argv);
}

async function serve(file: string | undefined): Promise<void> {
  const config = readConfig(file);
  if (!config) return;
  let service: Service | undefined;
  // Registered before start-up: SIGHUP without a listener ends the process.
  process.on('SIGHUP', () => void (service && reload(service, file)));
  try {
    service = await Service.start(config);
  } catch (error) {
    fail(explainFailure(error));
    return;
  }
  stopOnSignals(service);
}

function readConfig(file: string | undefined): Config | undefined {
  try {
    return loadConfig({ file, env: process.env, directory: process.cwd() });
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    fail(error.message);
    return undefined;
  }
}

function stopOnSignals(service: Service): void {
  let firstAt: number | undefined;
  const onSignal = (signal: NodeJS.Signals): void => {
    const now = performance.now();
    if (firstAt === undefined) {
      firstAt = now;
      service.log.events.info({ signal }, 'stopping: running responses have 30 s to finish');
      void service.stop().then(() => process.exit(0));
    } else if (now - firstAt > repeatIgnoredMs) process.exit(1);
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
}

async function reload(service: Service, file: string | undefined): Promise<void> {
  try {
    await service.reload(loadConfig({ file, env: process.env, directory: process.cwd() }));
  } catch (error) {
    const { events } = service.log;
    const problems = error instanceof ConfigError ? error.problems : undefined;
    events.error(
      { ...(problems ? { problems } : { err: error }) },
      'the new configuration is invalid: keeping the previous one',
    );
  }
}

/** The message with its causes; for bugs also the stack. */
function explainFailure(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const lines = [error.message];
  for (let { cause } = error; cause instanceof Error; { cause } = cause)
    if (!lines.join(' ').includes(cause.message)) lines.push(`  caused by: ${cause.message}`);
  const isBug = [TypeError, ReferenceError, RangeError].some((kind) => error instanceof kind);
  return [...lines, ...(isBug ? [error.stack ?? ''] : [])].join('\n');
}

function fail(message: string): void {
  process.stderr.write(`layercache: ${message}\n`);
  process.exitCode = 1;
}
