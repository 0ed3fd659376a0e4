import type { Pattern } from '../oci/pattern.ts';
import type { Repo } from '../oci/repo.ts';

/** Access rules: patterns over registry, repo and tag. */
export interface Rules {
  /** Undefined: everything not denied. */
  readonly allow: readonly Pattern[] | undefined;
  readonly deny: readonly Pattern[];
}

/**
 * Whether the rules permit a request. `tag`: undefined for digests and lists. An `allow` pattern with a tag also permits
 * digests of its repo, since clients pull a tag by digest; a `deny` pattern with a tag denies only that tag.
 */
export function permits({ allow, deny }: Rules, repo: Repo, tag: string | undefined): boolean {
  if (deny.some((pattern) => pattern.matches(repo, tag))) return false;
  if (allow === undefined) return true;
  return allow.some((pattern) =>
    tag === undefined ? pattern.matchesRepo(repo) : pattern.matches(repo, tag),
  );
}

/** A group's `allow` replaces the general one; its `deny` adds to the general one. */
export function rulesFor(general: Rules, group: Rules | undefined): Rules {
  if (!group) return general;
  return { allow: group.allow ?? general.allow, deny: [...general.deny, ...group.deny] };
}
