import { once } from 'node:events';
import pino, { type Logger } from 'pino';
import pretty from 'pino-pretty';

export type { Logger };

/** Where finished lines go. */
export interface LineSink {
  write(lines: string): unknown;
}

export interface LogOptions {
  /** `fatal` … `trace`, or `silent`. */
  level: string;
}

const flushEveryMs = 50;

/**
 * Lines on their way out: collected, and written together every 50 ms, since a write for each request would cost more
 * than answering it.
 */
class LineBatch implements LineSink {
  readonly #out: LineSink;
  #lines = '';
  #timer: NodeJS.Timeout | undefined;

  constructor(out: LineSink) {
    this.#out = out;
  }

  write(lines: string): void {
    this.#lines += lines;
    this.#timer ??= setTimeout(() => this.flush(), flushEveryMs);
  }

  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#lines === '') return;
    this.#out.write(this.#lines);
    this.#lines = '';
  }
}

export interface Log {
  readonly events: Logger;
  /** One finished JSON object, without the time and the line end. */
  access(fields: string): void;
  setLevel(level: string): void;
  /** Writes out what is still held, and waits until it has left. */
  close(): Promise<void>;
}

/** Standard output: JSON lines, or readable ones where a person is watching. */
function standardOutput(): { sink: LineSink; close: () => Promise<void> } {
  if (process.stdout.isTTY) {
    const sink = pretty({
      destination: 1,
      sync: true,
      ignore: 'pid,hostname',
      translateTime: 'SYS:HH:MM:ss.l',
      singleLine: true,
    });
    return { sink, close: () => Promise.resolve() };
  }
  const sink = pino.destination({ fd: 1, sync: false });
  // A reader of our output that has gone must not take the mirror with it.
  sink.on('error', () => undefined);
  const close = async (): Promise<void> => {
    const closed = once(sink, 'close');
    sink.end();
    await closed;
  };
  return { sink, close };
}

/** `sink` replaces standard output (tests). */
export function createLog(options: LogOptions, sink?: LineSink): Log {
  const out = sink ? { sink, close: () => Promise.resolve() } : standardOutput();
  const batch = new LineBatch(out.sink);
  const events = pino(
    { level: options.level, base: null, serializers: { err: (error: unknown) => serializeError(error) } },
    batch,
  );
  let accessWanted = events.isLevelEnabled('info');
  return {
    events,
    access(fields) {
      if (accessWanted) batch.write(`{"level":30,"time":${Date.now()},${fields.slice(1)}\n`);
    },
    setLevel(level) {
      events.level = level;
      accessWanted = events.isLevelEnabled('info');
    },
    async close() {
      batch.flush();
      await out.close();
    },
  };
}

/** The chain of messages tells what happened; stacks are for bugs. */
function serializeError(error: unknown, withStack = true): unknown {
  if (!(error instanceof Error)) return error;
  const { fault } = error as { fault?: string };
  const stack = withStack && (fault === undefined || fault === 'internal');
  return {
    message: error.message,
    ...(fault !== undefined && { fault }),
    ...(stack && error.stack !== undefined && fault === undefined && { stack: error.stack }),
    ...(error.cause !== undefined && { cause: serializeError(error.cause, stack) }),
  };
}
