import { MirrorError } from '../util/errors.ts';

/** What a repository is called, with its name as the registry spells it. */
export interface RepoName {
  /** `docker.io`, or the one of many registries that a pattern covers: `acme.azurecr.io`. */
  readonly registry: string;
  /** `library/alpine` */
  readonly name: string;
}

/** A repository of an upstream. */
export interface Repo extends RepoName {
  /** The name or pattern that its upstream is configured by: for metrics, where no client can choose it. */
  readonly upstream: string;
  /** `docker.io/library/alpine`: for keys and messages. */
  readonly key: string;
}

// OCI distribution-spec v1.1.1, "Pulling manifests".
const nameForm = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const tagForm = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;
const maxNameLength = 255;

/**
 * Throws `name-invalid`. On Docker Hub a bare name is an official image: `alpine` is `library/alpine`. `upstream` has no
 * default: by it a registry under a pattern is known as one.
 */
export function createRepo(registry: string, name: string, upstream: string): Repo {
  if (name.length > maxNameLength || !nameForm.test(name)) {
    throw new MirrorError(
      'name-invalid',
      `repository ${JSON.stringify(name.slice(0, 150))}: expected lower-case components of letters, digits and single separators, at most ${maxNameLength} characters in all`,
    );
  }
  const full = registry === 'docker.io' && !name.includes('/') ? `library/${name}` : name;
  return { registry, upstream, name: full, key: `${registry}/${full}` };
}

/** Of a registry that a pattern covers: anybody may have rented it. */
export function isFromPattern({ registry, upstream }: Pick<Repo, 'registry' | 'upstream'>): boolean {
  return registry !== upstream;
}

export function isTag(text: string): boolean {
  return tagForm.test(text);
}
