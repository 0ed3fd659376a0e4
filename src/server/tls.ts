import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Server } from 'node:https';
import { createSecureContext, type SecureContextOptions } from 'node:tls';
import type { Logger } from '../telemetry/log.ts';
import { errorCode } from '../util/errors.ts';
import { watchFiles } from '../util/watch.ts';

/** Files in PEM. */
export interface TlsFiles {
  readonly cert: string;
  readonly key: string;
  /** Clients must show a certificate that these have signed. */
  readonly clientCa: string | undefined;
}

/** Throws with the name of what is wrong. */
export function readTls(files: TlsFiles): SecureContextOptions {
  const read = (name: keyof TlsFiles): Buffer | undefined => {
    const file = files[name];
    if (file === undefined) return undefined;
    try {
      return readFileSync(file);
    } catch (error) {
      throw new Error(
        `tls.${name}: the file ${showPath(file)} cannot be read (${errorCode(error) ?? 'unknown'})`,
        {
          cause: error,
        },
      );
    }
  };
  const ca = read('clientCa');
  if (ca) checkCertificates(ca, 'tls.clientCa');
  const context = { cert: read('cert'), key: read('key'), ...(ca && { ca }), minVersion: 'TLSv1.2' as const };
  try {
    createSecureContext(context);
  } catch (cause) {
    // OpenSSL tells what it could not read, and shows nothing of it.
    throw new Error(`tls: certificate and key cannot be used: ${(cause as Error).message}`, { cause });
  }
  return context;
}

/** Throws when there is no certificate in it: that would trust nobody, without a word. */
export function checkCertificates(pem: Buffer | string, name: string): void {
  try {
    new X509Certificate(pem);
  } catch (cause) {
    throw new Error(`${name}: found no certificate in PEM`, { cause });
  }
}

/** What was meant as content is not shown. */
export function showPath(text: string): string {
  return /[\n$]|-----|:.*:/.test(text) || text.length > 500 ? 'that is named' : text;
}

/** Takes new certificates as they come. Returns how to stop. */
export function followTls(
  server: Pick<Server, 'setSecureContext'>,
  files: TlsFiles,
  log: Logger,
): () => void {
  const paths = [files.cert, files.key, ...(files.clientCa === undefined ? [] : [files.clientCa])];
  return watchFiles(paths, () => {
    try {
      server.setSecureContext(readTls(files));
      log.info('the TLS certificate was read again');
    } catch (error) {
      // The other file of the pair may still be on its way.
      log.warn({ err: error }, 'the TLS certificate that is there now cannot be used: it stays as it was');
    }
  });
}
