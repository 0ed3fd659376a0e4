import { MirrorError } from '../util/errors.ts';

/** A repository by registry and name. */
export interface RepoName {
  /** `docker.io`, or a registry covered by a pattern: `acme.azurecr.io`. */
  readonly registry: string;
  /** `library/alpine` */
  readonly name: string;
}

/** A repository of an upstream. */
export interface Repo extends RepoName {
  /** Configured name or pattern of the upstream: a metrics label that clients cannot choose. */
  readonly upstream: string;
  /** `docker.io/library/alpine`: for keys and messages. */
  readonly key: string;
}

// OCI distribution-spec v1.1.1, "Pulling manifests".
const nameForm = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const tagForm = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;
const maxNameLength = 255;

/**
 * Throws `name-invalid`. On Docker Hub a bare name is an official image: `alpine` is `library/alpine`. `upstream`: the
 * configured name or pattern; it differs from `registry` for a pattern.
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

/** Whether a pattern covers its registry, which may then belong to a stranger. */
export function isFromPattern({ registry, upstream }: Pick<Repo, 'registry' | 'upstream'>): boolean {
  return registry !== upstream;
}

export function isTag(text: string): boolean {
  return tagForm.test(text);
}
