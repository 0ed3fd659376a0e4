import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import pino, { type Logger } from 'pino';
import { prettyFactory } from 'pino-pretty';

export type { Logger };

/** Receives complete lines. */
export interface LineSink {
  write(lines: string): unknown;
}

export interface LogOptions {
  /** `fatal` … `trace`, or `silent`. */
  level: string;
}

const flushEveryMs = 50;

/** Collects lines and writes them every 50 ms: one write per request would cost more than a cache hit. */
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
  /** Writes an access line: a complete JSON object without time and line end. */
  access(fields: string): void;
  setLevel(level: string): void;
  /** Flushes all lines. */
  close(): Promise<void>;
}

/** Bytes queued for a slow reader of standard output; further lines are dropped. */
const maxWaitingBytes = 8 * 1024 * 1024;
const closeWithinMs = 1000;

/**
 * Standard output: JSON lines, or formatted ones on a terminal. Never blocks on its reader; `onDropped` gets the number
 * of dropped lines.
 */
function standardOutput(onDropped: (lines: number) => void): {
  sink: LineSink;
  close: () => Promise<void>;
} {
  const out = pino.destination({ fd: 1, sync: false, maxLength: maxWaitingBytes });
  // A closed pipe must not stop the mirror.
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
    const msg = 'log lines were dropped: the reader of standard output is too slow';
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
  /** Replaces standard output in tests. */
  readonly sink?: LineSink | undefined;
  /** Called with the number of dropped lines. */
  readonly onDropped?: (lines: number) => void;
}

export function createLog(options: LogOptions, { sink, onDropped = () => undefined }: LogOutput = {}): Log {
  const out = sink ? { sink, close: () => Promise.resolve() } : standardOutput(onDropped);
  const batch = new LineBatch(out.sink);
  const events = pino(
    { level: options.level, base: null, serializers: { err: (error: unknown) => serializeError(error) } },
    batch,
  );
  let isAccessLogged = events.isLevelEnabled('info');
  return {
    events,
    access(fields) {
      if (isAccessLogged) batch.write(`{"level":30,"time":${Date.now()},${fields.slice(1)}\n`);
    },
    setLevel(level) {
      events.level = level;
      isAccessLogged = events.isLevelEnabled('info');
    },
    async close() {
      batch.flush();
      await out.close();
    },
  };
}

/** Messages may quote upstream and client input. */
const maxMessage = 2000;

/** Messages of the error and its causes; stacks only for bugs. */
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
