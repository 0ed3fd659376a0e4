import { getDomain } from 'tldts';
import { globToRegExp } from '../oci/pattern.ts';

const label = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?';
const hostName = new RegExp(`^${label}(?:\\.${label})*$`);

/**
 * A pattern that covers many registries: `*.azurecr.io`, `*.dkr.ecr.*.amazonaws.com`. An asterisk matches within one
 * label. The registrable domain must be literal: otherwise clients could name any host, as through an open proxy.
 */
export class RegistryPattern {
  readonly #form: RegExp;

  /** Undefined if the text is not a valid pattern. */
  static parse(text: string): RegistryPattern | undefined {
    if (!text.includes('*') || !hostName.test(text.replace(/\*+/g, 'x'))) return undefined;
    const literal = text.slice(text.lastIndexOf('*') + 1).replace(/^[^.]*\./, '');
    // `*.co.uk` and `*.github.io` have no literal registrable domain.
    const hasLiteralDomain =
      /\.[a-z][^.]*$/.test(literal) && getDomain(literal, { allowPrivateDomains: true }) !== null;
    return hasLiteralDomain ? new RegistryPattern(text) : undefined;
  }

  private constructor(text: string) {
    this.#form = globToRegExp(text, () => '[a-z0-9-]+');
  }

  matches(registry: string): boolean {
    return registry.length <= 253 && this.#form.test(registry) && hostName.test(registry);
  }
}

/** A host as in image names, with or without a port: `docker.io`, `registry:5000`. */
export function isRegistryName(text: string): boolean {
  return hostName.test(text.replace(/:\d{1,5}$/, '')) && text.length <= 253;
}
