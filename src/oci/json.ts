/** Smaller documents cannot nest deep enough to matter. */
const uncheckedBytes = 64 * 1024;
const maxDepth = 100;

/**
 * Parses untrusted JSON. Throws `SyntaxError`, also for more than 100 levels: parsing very deep JSON takes seconds and
 * hundreds of times its size in memory.
 */
export function parseJson(bytes: Uint8Array): unknown {
  if (bytes.length > uncheckedBytes) checkDepth(bytes);
  return JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8'));
}

function checkDepth(bytes: Uint8Array): void {
  let depth = 0;
  let isText = false;
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at];
    if (isText) {
      // Skip the escaped character.
      if (byte === 0x5c) at += 1;
      else if (byte === 0x22) isText = false;
    } else if (byte === 0x22) isText = true;
    else if (byte === 0x5b || byte === 0x7b) {
      depth += 1;
      if (depth > maxDepth) throw new SyntaxError(`more than ${maxDepth} levels of JSON`);
    } else if (byte === 0x5d || byte === 0x7d) depth -= 1;
  }
}
