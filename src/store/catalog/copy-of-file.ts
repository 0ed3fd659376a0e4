import Database from 'better-sqlite3';
import { readFileSync } from 'node:fs';
import { errorCode } from '../../util/errors.ts';

/**
 * Header bytes of the file format version: 1 is the rollback journal. A database in memory cannot use a write-ahead
 * log (2).
 */
const journalBytes = [18, 19] as const;

/** Copies the database, with the transactions in its write-ahead log, to memory. Throws when it cannot be read. */
export function copyOf(file: string): Database.Database {
  const bytes = withLog(readFileSync(file), readIfThere(`${file}-wal`));
  for (const at of journalBytes) if (at < bytes.length) bytes[at] = 1;
  return new Database(bytes);
}

function readIfThere(file: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return Buffer.alloc(0);
    throw error;
  }
}

const logHeaderBytes = 32;
const frameHeaderBytes = 24;
/** The lowest bit is set if checksums are over big-endian words. */
const logMagic = 0x377f0682;

/** Applies the committed transactions of the log to the file (sqlite.org/fileformat2.html#the_write_ahead_log). */
function withLog(file: Buffer, log: Buffer): Buffer {
  if (log.length < logHeaderBytes || (log.readUInt32BE(0) & ~1) !== logMagic) return file;
  const isBigEndian = log.readUInt32BE(0) % 2 === 1;
  const pageBytes = log.readUInt32BE(8);
  const frameBytes = frameHeaderBytes + pageBytes;
  const salt = log.subarray(16, 24);
  let sum = checksum(log.subarray(0, 24), [0, 0], isBigEndian);
  if (!isSum(log, 24, sum)) return file;
  /** Offset in the log of each committed page; `open`: pages of the transaction being read. */
  const pages = new Map<number, number>();
  let open: [page: number, at: number][] = [];
  let count: number | undefined;
  for (let at = logHeaderBytes; at + frameBytes <= log.length; at += frameBytes) {
    const bytes = log.subarray(at + frameHeaderBytes, at + frameBytes);
    sum = checksum(bytes, checksum(log.subarray(at, at + 8), sum, isBigEndian), isBigEndian);
    // The rest are frames of an earlier log.
    if (!salt.equals(log.subarray(at + 8, at + 16)) || !isSum(log, at + 16, sum)) break;
    open.push([log.readUInt32BE(at), at + frameHeaderBytes]);
    const pagesThen = log.readUInt32BE(at + 4);
    if (pagesThen === 0) continue;
    for (const [page, from] of open) pages.set(page, from);
    open = [];
    count = pagesThen;
  }
  if (count === undefined) return file;
  const whole = Buffer.alloc(count * pageBytes);
  file.copy(whole);
  for (const [page, from] of pages)
    if (page <= count) log.copy(whole, (page - 1) * pageBytes, from, from + pageBytes);
  return whole;
}

type Sum = readonly [number, number];

function checksum(bytes: Buffer, [first, second]: Sum, isBigEndian: boolean): Sum {
  const words = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < bytes.length; at += 8) {
    first = (first + words.getUint32(at, !isBigEndian) + second) >>> 0;
    second = (second + words.getUint32(at + 4, !isBigEndian) + first) >>> 0;
  }
  return [first, second];
}

function isSum(log: Buffer, at: number, [first, second]: Sum): boolean {
  return log.readUInt32BE(at) === first && log.readUInt32BE(at + 4) === second;
}
