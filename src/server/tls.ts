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
  /** CAs of client certificates. Defined: every client must present one. */
  readonly clientCa: string | undefined;
}

/** Reads and validates the files. Throws an error that names the configuration key. */
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
    // OpenSSL's message contains no key material.
    throw new Error(`tls: cannot use certificate and key: ${(cause as Error).message}`, { cause });
  }
  return context;
}

/** Throws if the text has no PEM certificate: Node would silently trust no CA. */
export function checkCertificates(pem: Buffer | string, name: string): void {
  try {
    new X509Certificate(pem);
  } catch (cause) {
    throw new Error(`${name}: found no certificate in PEM`, { cause });
  }
}

/** The path for a message, unless the value looks like inline content, which may be secret. */
export function showPath(text: string): string {
  return /[\n$]|-----|:.*:/.test(text) || text.length > 500 ? '(not shown)' : text;
}

/** Reloads the certificate when its files change. Returns a function that stops watching. */
export function followTls(
  server: Pick<Server, 'setSecureContext'>,
  files: TlsFiles,
  log: Logger,
): () => void {
  const paths = [files.cert, files.key, ...(files.clientCa === undefined ? [] : [files.clientCa])];
  return watchFiles(paths, () => {
    try {
      server.setSecureContext(readTls(files));
      log.info('TLS certificate reloaded');
    } catch (error) {
      // Perhaps only one file of the pair has been replaced so far.
      log.warn({ err: error }, 'the new TLS certificate is invalid: keeping the previous one');
    }
  });
}
