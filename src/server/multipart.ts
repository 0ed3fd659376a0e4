import { randomBytes } from 'node:crypto';
import { Writable } from 'node:stream';
import type { Content } from '../oci/content.ts';
import type { ByteRange } from '../oci/range.ts';

/** 96 random bits: no content contains it. */
const boundary = `layercache${randomBytes(12).toString('hex')}`;
const end = Buffer.from(`\r\n--${boundary}--\r\n`);

/**
 * A multipart/byteranges body (RFC 9110 section 14.6) with exactly one part per range, in request order: podman counts
 * the parts.
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

  /** Writes the body and ends the sink. Rejects as `copyTo` does; the sink is then not ended. */
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

/** One part of a body. Ending it does not end the body; closing the body destroys it. */
class Part extends Writable {
  readonly #body: Writable;
  readonly #onGone = (): void => void this.destroy();

  constructor(body: Writable) {
    super({ autoDestroy: false });
    this.#body = body;
    body.once('close', this.#onGone);
    // The writer learns of errors by callback; an unhandled 'error' event would end the process.
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
