import { OperationError } from '../util/errors.ts';
import type { RepoName } from './repo.ts';

/**
 * `registry/repo[:tag]`. `*` matches within a path component, `**` across components; without a tag the pattern matches
 * every tag and digest.
 */
export class Pattern {
  /** The configured text. */
  readonly text: string;
  /** For SQLite's GLOB over `registry/repo`; may match more than the pattern. */
  readonly glob: string;
  readonly #repo: RegExp;
  readonly #tag: RegExp | undefined;

  /** Undefined if the text is not a pattern. */
  static parse(text: string): Pattern | undefined {
    const [, repo, tag] = /^([^/\s]+\/\S*?[^/:\s])(?::([^/:\s]+))?$/.exec(text) ?? [];
    return repo === undefined || /[^\w.:/*-]/.test(text) ? undefined : new Pattern(text, repo, tag);
  }

  private constructor(text: string, repo: string, tag: string | undefined) {
    this.text = text;
    const [registry, ...rest] = repo.split('/');
    // On Docker Hub a bare name is an official image, as in `createRepo`.
    const isBare = registry === 'docker.io' && rest.length === 1 && !rest[0]?.includes('**');
    const full = isBare ? `docker.io/library/${rest[0] ?? ''}` : repo;
    this.glob = full;
    this.#repo = toRegExp(full);
    this.#tag = tag === undefined ? undefined : toRegExp(tag);
  }

  /** `tag`: undefined for a digest. */
  matches(repo: RepoName, tag: string | undefined): boolean {
    if (this.#tag && (tag === undefined || !this.#tag.test(tag))) return false;
    return this.matchesRepo(repo);
  }

  matchesRepo({ registry, name }: RepoName): boolean {
    return this.#repo.test(`${registry}/${name}`);
  }
}

function toRegExp(text: string): RegExp {
  return globToRegExp(text, (stars) => (stars.length > 1 ? '.*' : '[^/]*'));
}

/** `standFor`: the regular expression for one or several asterisks. */
export function globToRegExp(text: string, standFor: (stars: string) => string): RegExp {
  const source = text.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replace(/\*+/g, standFor);
  return new RegExp(`^${source}$`);
}

/** Throws `OperationError` if the text is not a pattern. */
export function patternOf(text: string): Pattern {
  const pattern = Pattern.parse(text);
  if (pattern) return pattern;
  throw new OperationError(`${text}: not a pattern such as "alpine", "alpine:3*" or "ghcr.io/acme/**"`);
}

/**
 * A pattern written like an image name: `alpine` is `docker.io/library/alpine`, and the part before the first slash is a
 * registry only if it looks like a host. Throws `OperationError`.
 */
export function imagePatternOf(text: string): Pattern {
  if (/[A-Z]/.test(text.replace(/:[^:/]*$/, '')))
    throw new OperationError(`${text}: names of images are in lower case`);
  const [first = '', ...rest] = text.split('/');
  // A bare host is not an image, and a bare `**` means every registry.
  if (rest.length === 0)
    return patternOf(/^[^:]*(?:\.|\*\*)/.test(text) ? text : `docker.io/library/${text}`);
  return patternOf(/[.:*]/.test(first) || first === 'localhost' ? text : `docker.io/${text}`);
}
