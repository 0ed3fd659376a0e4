/** Built-in settings of a registry, so that its name suffices in the configuration. */
export interface Preset {
  /** API URL, if not `https://` and the name. */
  readonly url?: string;
  /** Other names of the same registry. */
  readonly aliases?: readonly string[];
  /** Token servers outside its own registrable domain. */
  readonly realms?: readonly string[];
}

/**
 * Registries that need more than their name. Challenges, redirects, tokens and refused HEADs are learnt from
 * responses, so ghcr.io, quay.io, registry.k8s.io, mcr.microsoft.com, public.ecr.aws, gcr.io and the like need no
 * entry.
 */
const presets: Readonly<Record<string, Preset>> = {
  'docker.io': { url: 'https://registry-1.docker.io', aliases: ['index.docker.io', 'registry-1.docker.io'] },
  // Names another realm once a token has expired.
  'nvcr.io': { realms: ['https://authn.nvidia.com/'] },
  // LinuxServer's front end for its packages on GitHub.
  'lscr.io': { realms: ['https://ghcr.io/token'] },
  'registry.redhat.io': { realms: ['https://sso.redhat.com/'] },
};

export function presetOf(registry: string): Preset {
  return Object.hasOwn(presets, registry) ? (presets[registry] ?? {}) : {};
}
