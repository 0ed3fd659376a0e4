import type { z } from 'zod';

/** A result for people: a table, and lines below it. */
export interface Shown {
  readonly head?: readonly string[];
  readonly rows?: readonly (readonly string[])[];
  readonly lines?: readonly string[];
  /** A command ends with exit code 1. */
  readonly isFailed?: boolean;
}

/** What the command line has of an operation. Without a summary it is no command, and for programs only. */
interface Command {
  readonly summary?: string;
  /** Its positional arguments: `<pattern>`, `[pattern]`. */
  readonly usage?: string;
  /** Flags with what they mean. */
  readonly options?: readonly (readonly [flags: string, description: string])[];
  /** Arguments that are paths: relative ones are resolved before another process gets them. */
  readonly paths?: readonly string[];
  /** It needs room under the cap; others work where pins do not fit under it any more. */
  readonly needsRoom?: boolean;
}

interface Definition<Reader, Target, A, R> extends Command {
  /** Unknown and mistyped arguments are refused, not taken for a default. */
  readonly args: z.ZodType<A>;
  /** On a catalog that is read beside whoever works on it: changes nothing. */
  readonly read?: (reader: Reader, args: A) => Promise<R>;
  /** Whether `read` is enough for these arguments; default: it always is. */
  readonly readsIf?: (args: A) => boolean;
  /** On the store that serves; absent: it is not part of the admin API. */
  readonly run?: (target: Target, args: A) => Promise<R>;
  readonly show: (result: R, args: A) => Shown;
  /** What programs get of the result; default: all of it. */
  readonly toJson?: (result: R) => unknown;
}

/** An operation with its arguments. */
export interface Prepared<Reader, Target> {
  readonly read: ((reader: Reader) => Promise<unknown>) | undefined;
  readonly run: ((target: Target) => Promise<unknown>) | undefined;
  /** Of what `read`, `run` or a running mirror gave. */
  readonly show: (result: unknown) => Shown;
  readonly toJson: (result: unknown) => unknown;
}

export interface Operation<Reader, Target> extends Command {
  readonly isForApi: boolean;
  /** Throws `ZodError` or `OperationError` for arguments that it does not take. */
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
        // A running mirror gives the same as `run`, by way of JSON.
        show: (result) => show(result as R, args),
        toJson: (result) => (toJson ? toJson(result as R) : result),
      };
    },
  };
}
