import type { Shown } from '../store/operations/operation.ts';

export function show({ head, rows, lines = [], isFailed = false }: Shown): void {
  if (head && rows) table(head, rows);
  for (const line of lines) write(line);
  if (isFailed) process.exitCode = 1;
}

export function print(value: unknown): void {
  write(JSON.stringify(value));
}

export function write(line: string): void {
  process.stdout.write(`${line}\n`);
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): void {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]?.length ?? 0)));
  for (const row of [head, ...rows]) {
    const cells = row.map((cell, i) => cell.padEnd(widths[i] ?? 0));
    write(cells.join('  ').trimEnd());
  }
}
