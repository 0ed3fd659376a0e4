import { join } from 'node:path';
import { run } from './programs.ts';

/** A test CA and certificates signed by it, made with openssl: PEM files. */
export class Authority {
  readonly certificate: string;
  readonly #directory: string;
  #count = 0;

  private constructor(directory: string) {
    this.#directory = directory;
    this.certificate = join(directory, 'ca.pem');
  }

  static async create(directory: string): Promise<Authority> {
    const authority = new Authority(directory);
    await run('openssl', [
      ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30'],
      ...['-subj', '/CN=test authority', '-keyout', join(directory, 'ca.key'), '-out', authority.certificate],
    ]);
    return authority;
  }

  /** A certificate for a local server or a client with this CN. */
  async sign(name: string): Promise<{ cert: string; key: string }> {
    const base = join(this.#directory, `${name}-${this.#count++}`);
    const [key, request, cert] = [`${base}.key`, `${base}.csr`, `${base}.pem`];
    await run('openssl', [
      ...['req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', `/CN=${name}`],
      ...['-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1', '-keyout', key, '-out', request],
    ]);
    await run('openssl', [
      ...['x509', '-req', '-in', request, '-days', '30', '-copy_extensions', 'copyall'],
      ...[
        '-CA',
        this.certificate,
        '-CAkey',
        join(this.#directory, 'ca.key'),
        '-CAcreateserial',
        '-out',
        cert,
      ],
    ]);
    return { cert, key };
  }
}
