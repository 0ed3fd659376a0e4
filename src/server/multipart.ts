import { randomBytes } from 'node:crypto';
import { Writable } from 'node:stream';
import type { Content } from '../oci/content.ts';
import type { ByteRange } from '../oci/range.ts';

/** Not in any content, but by guessing 96 bits. */
const boundary = `layercache${randomBytes(12).toString('hex')}`;
const end = Buffer.from(`\r\n--${boundary}--\r\n`);

/**
 * Several ranges of one content (RFC 9110 section 14.6): exactly one part for each, in the order in which they were asked
 * for, since podman counts them.
 */
export class Multipart {
  readonly mediaType = `multipart/byteranges; boundary=${boundary}`;
  readonly length: number;
  readonly #parts: readonly { readonly head: Buffer; readonly range: ByteRange }[];

  constructor(ranges: readonly ByteRange[], size: number, mediaType: string) {
    this.#parts = ranges.map((range, i) => {
      const lines = [
        `${i === 0 ? '' : '\r\n'}--${boundary}`,
        `Content-Type: ${mediaType}`,
        `Content-Range: bytes ${range.start}-${range.end - 1}/${size}`,
        '\r\n',
      ];
      return { head: Buffer.from(lines.join('\r\n')), range };
    });
    this.length = this.#parts.reduce(
      (sum, { head, range }) => sum + head.length + range.end - range.start,
      end.length,
    );
  }

  /** Rejects as `copyTo` does, the sink unended. */
  async send(content: Content, sink: Writable): Promise<void> {
    for (const { head, range } of this.#parts) {
      sink.write(head);
      const part = new Part(sink);
      try {
        await content.copyTo(part, range);
      } finally {
        part.close();
      }
    }
    sink.end(end);
  }
}

/** A part of a body: it ends without ending what it is a part of, and goes away with it. */
class Part extends Writable {
  readonly #body: Writable;
  readonly #onGone = (): void => void this.destroy();

  constructor(body: Writable) {
    super({ autoDestroy: false });
    this.#body = body;
    body.once('close', this.#onGone);
    // Whoever writes is told; an 'error' that nobody listens to would end the process.
    this.on('error', () => undefined);
    if (body.destroyed) this.destroy();
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    this.#body.write(chunk, done);
  }

  close(): void {
    this.#body.off('close', this.#onGone);
  }
}
