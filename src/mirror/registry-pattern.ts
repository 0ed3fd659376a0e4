import { getDomain } from 'tldts';

/**
 * Many registries by one name: `*.azurecr.io`, `*.dkr.ecr.*.amazonaws.com`. An asterisk stands for characters of one
 * label; the registrable domain is written out, since whoever may name any host has an open proxy.
 */
export class RegistryPattern {
  readonly #form: RegExp;

  /** Undefined when the text is not such a pattern. */
  static parse(text: string): RegistryPattern | undefined {
    if (!/^[a-z0-9*-]+(?:\.[a-z0-9*-]+)+$/.test(text) || !text.includes('*')) return undefined;
    const fixed = text.slice(text.lastIndexOf('*') + 1).replace(/^[^.]*\./, '');
    // Of `*.co.uk` nothing is left that could be registered; internal domains are nobody's to register.
    return fixed.includes('.') && getDomain(fixed) !== null ? new RegistryPattern(text) : undefined;
  }

  private constructor(text: string) {
    const source = text.replace(/\./g, '\\.').replace(/\*+/g, '[a-z0-9-]+');
    this.#form = new RegExp(`^${source}$`);
  }

  matches(registry: string): boolean {
    return registry.length <= 253 && this.#form.test(registry);
  }
}
