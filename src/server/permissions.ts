import type { Pattern } from '../oci/pattern.ts';
import type { Repo } from '../oci/repo.ts';

/** Patterns over registry, repo and tag. */
export interface Rules {
  /** Undefined: everything that is not denied. */
  readonly allow: readonly Pattern[] | undefined;
  readonly deny: readonly Pattern[];
}

/**
 * Whether rules let a client have this. `tag`: undefined for digests and lists. Where tags are allowed, what is asked for
 * by digest is too, since that is how a tag is pulled; where tags are denied, only these are.
 */
export function permits({ allow, deny }: Rules, repo: Repo, tag: string | undefined): boolean {
  if (deny.some((pattern) => pattern.matches(repo, tag))) return false;
  if (allow === undefined) return true;
  return allow.some((pattern) =>
    tag === undefined ? pattern.matchesRepo(repo) : pattern.matches(repo, tag),
  );
}

/** Those of a group stand in place of the general `allow`, and beside the general `deny`. */
export function rulesFor(general: Rules, group: Rules | undefined): Rules {
  if (!group) return general;
  return { allow: group.allow ?? general.allow, deny: [...general.deny, ...group.deny] };
}
