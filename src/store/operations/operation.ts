import type { z } from 'zod';

/** A result for display: a table, and lines below it. */
export interface Shown {
  readonly head?: readonly string[];
  readonly rows?: readonly (readonly string[])[];
  readonly lines?: readonly string[];
  /** The command exits with 1. */
  readonly isFailed?: boolean;
}

/** Command-line part of an operation. Without a summary it is not a command, only part of the admin API. */
interface Command {
  readonly summary?: string;
  /** Positional arguments: `<pattern>`, `[pattern]`. */
  readonly usage?: string;
  /** Flags and their descriptions. */
  readonly options?: readonly (readonly [flags: string, description: string])[];
  /** Names of arguments that are paths: made absolute before they are sent to another process. */
  readonly paths?: readonly string[];
  /** Needs free space under the cap. Others run even if the pins exceed the cap. */
  readonly needsRoom?: boolean;
}

interface Definition<Reader, Target, A, R> extends Command {
  /** Must reject unknown and mistyped arguments. */
  readonly args: z.ZodType<A>;
  /** Runs on a read-only catalog, beside the process that has the store open. */
  readonly read?: (reader: Reader, args: A) => Promise<R>;
  /** Whether `read` suffices for these arguments; default: always. */
  readonly readsIf?: (args: A) => boolean;
  /** Runs on the open store; absent: not part of the admin API. */
  readonly run?: (target: Target, args: A) => Promise<R>;
  readonly show: (result: R, args: A) => Shown;
  /** JSON output; default: the whole result. */
  readonly toJson?: (result: R) => unknown;
}

/** An operation with its arguments. */
export interface Prepared<Reader, Target> {
  readonly read: ((reader: Reader) => Promise<unknown>) | undefined;
  readonly run: ((target: Target) => Promise<unknown>) | undefined;
  /** Displays a result of `read`, `run` or a running mirror. */
  readonly show: (result: unknown) => Shown;
  readonly toJson: (result: unknown) => unknown;
}

export interface Operation<Reader, Target> extends Command {
  readonly isForApi: boolean;
  /** Throws `ZodError` or `OperationError` for invalid arguments. */
  readonly prepare: (args: unknown) => Prepared<Reader, Target>;
}

export function define<Reader, Target, A, R>(
  definition: Definition<Reader, Target, A, R>,
): Operation<Reader, Target> {
  const { args: schema, read, readsIf = () => true, run, show, toJson, ...command } = definition;
  return {
    ...command,
    isForApi: run !== undefined,
    prepare: (given) => {
      const args = schema.parse(given);
      return {
        read: read && readsIf(args) ? (reader) => read(reader, args) : undefined,
        run: run && ((target) => run(target, args)),
        // A running mirror returns the result of `run` as JSON.
        show: (result) => show(result as R, args),
        toJson: (result) => (toJson ? toJson(result as R) : result),
      };
    },
  };
}
