/** What is known of a registry by its name, so that the name is all that a configuration needs. */
export interface Preset {
  /** Where its API answers, if that is not `https://` and its name. */
  readonly url?: string;
  /** Other names for the same thing. */
  readonly aliases?: readonly string[];
  /** Where it sends for tokens, outside its own registrable domain. */
  readonly realms?: readonly string[];
}

/**
 * Registries that need more than their name. Challenges, redirects, tokens and refusals of HEAD are learnt from what a
 * registry answers and stand in no table: ghcr.io, quay.io, registry.k8s.io, mcr.microsoft.com, public.ecr.aws, gcr.io
 * and the like need nothing here.
 */
const presets: Readonly<Record<string, Preset>> = {
  'docker.io': { url: 'https://registry-1.docker.io', aliases: ['index.docker.io', 'registry-1.docker.io'] },
  // After a token has expired it names another realm than before.
  'nvcr.io': { realms: ['https://authn.nvidia.com/'] },
  // LinuxServer's front for its packages on GitHub.
  'lscr.io': { realms: ['https://ghcr.io/token'] },
  'registry.redhat.io': { realms: ['https://sso.redhat.com/'] },
};

export function presetOf(registry: string): Preset {
  return Object.hasOwn(presets, registry) ? (presets[registry] ?? {}) : {};
}
