import bytes from 'bytes';
import ms, { type StringValue } from 'ms';

const durationForm = /^\d+(\.\d+)?\s*(ms|s|m|h|d|w)$/;
const sizeForm = /^(\d+(?:\.\d+)?)\s*(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)$/;

/** Milliseconds from `"90s"`, `"5m"`, `"30d"` or a bare number; undefined if invalid. */
export function parseDuration(value: unknown): number | undefined {
  if (typeof value === 'number') return Number.isFinite(value) && value >= 0 ? value : undefined;
  if (typeof value !== 'string') return undefined;
  if (/^\d+$/.test(value)) return Number(value);
  return durationForm.test(value) ? ms(value as StringValue) : undefined;
}

/** Bytes from `"512MB"` (1000-based), `"1GiB"` (1024-based) or a bare number; undefined if invalid. */
export function parseSize(value: unknown): number | undefined {
  if (typeof value === 'number') return Number.isSafeInteger(value) && value >= 0 ? value : undefined;
  if (typeof value !== 'string') return undefined;
  if (/^\d+$/.test(value)) return Number(value);
  const [, figure, unit] = sizeForm.exec(value) ?? [];
  if (figure === undefined || unit === undefined) return undefined;
  if (unit.includes('i')) return bytes.parse(`${figure}${unit.replace('i', '')}`) ?? undefined;
  const power = { B: 0, kB: 1, KB: 1, MB: 2, GB: 3, TB: 4 }[unit] ?? 0;
  return Math.round(Number(figure) * 1000 ** power);
}

/** `1.5 GB`, 1000-based, for messages. */
export function formatSize(size: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let figure = size;
  let unit = 0;
  while (figure >= 1000 && unit < units.length - 1) {
    figure /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? figure : figure.toFixed(1)} ${units[unit] ?? ''}`;
}

/** `1 tag`, `2 tags`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}
