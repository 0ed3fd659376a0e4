import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import pino, { type Logger } from 'pino';
import { prettyFactory } from 'pino-pretty';

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

/** So much waits for whoever reads our output; what comes while it does not is dropped. */
const maxWaitingBytes = 8 * 1024 * 1024;
const closeWithinMs = 1000;

/**
 * Standard output: JSON lines, or readable ones where a person is watching. Nothing waits for its reader. `onDropped` is told
 * how many lines nobody took.
 */
function standardOutput(onDropped: (lines: number) => void): {
  sink: LineSink;
  close: () => Promise<void>;
} {
  const out = pino.destination({ fd: 1, sync: false, maxLength: maxWaitingBytes });
  // A reader of our output that has gone must not take the mirror with it.
  out.on('error', () => undefined);
  let dropped = 0;
  out.on('drop', (text: string) => {
    const lines = text.split('\n').length - 1;
    dropped += lines;
    onDropped(lines);
  });
  const write = process.stdout.isTTY ? prettily(out) : (lines: string) => out.write(lines);
  out.on('drain', () => {
    if (dropped === 0) return;
    const msg = 'lines of this log were dropped, since nobody read it';
    write(`${JSON.stringify({ level: 40, time: Date.now(), lines: dropped, msg })}\n`);
    dropped = 0;
  });
  const close = async (): Promise<void> => {
    const closed = once(out, 'close');
    out.end();
    await Promise.race([closed, sleep(closeWithinMs, undefined, { ref: false })]);
  };
  return { sink: { write }, close };
}

function prettily(out: LineSink): (lines: string) => unknown {
  const format = prettyFactory({
    colorize: true,
    ignore: 'pid,hostname',
    translateTime: 'SYS:HH:MM:ss.l',
    singleLine: true,
  });
  return (lines) =>
    out.write(
      lines
        .split('\n')
        .map((line) => (line === '' ? '' : format(line)))
        .join(''),
    );
}

export interface LogOutput {
  /** In place of standard output (tests). */
  readonly sink?: LineSink | undefined;
  /** Lines were dropped, since nobody read them in time. */
  readonly onDropped?: (lines: number) => void;
}

export function createLog(options: LogOptions, { sink, onDropped = () => undefined }: LogOutput = {}): Log {
  const out = sink ? { sink, close: () => Promise.resolve() } : standardOutput(onDropped);
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

/** Messages may quote what others have sent. */
const maxMessage = 2000;

/** The chain of messages tells what happened; stacks are for bugs. */
function serializeError(error: unknown, withStack = true): unknown {
  if (!(error instanceof Error)) return error;
  const { fault } = error as { fault?: string };
  const stack = withStack && (fault === undefined || fault === 'internal');
  return {
    message: error.message.slice(0, maxMessage),
    ...(fault !== undefined && { fault }),
    ...(stack && error.stack !== undefined && fault === undefined && { stack: error.stack }),
    ...(error.cause !== undefined && { cause: serializeError(error.cause, stack) }),
  };
}
