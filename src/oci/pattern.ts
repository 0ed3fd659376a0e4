import { OperationError } from '../util/errors.ts';
import type { RepoName } from './repo.ts';

/**
 * `registry/repo[:tag]`: `*` stands for anything within a component, `**` for anything across components; without a tag
 * it means every tag and digest.
 */
export class Pattern {
  /** As it was written. */
  readonly text: string;
  /** What it matches at most, for SQLite's GLOB over `registry/repo`. */
  readonly glob: string;
  readonly #repo: RegExp;
  readonly #tag: RegExp | undefined;

  /** Undefined when the text is not a pattern. */
  static parse(text: string): Pattern | undefined {
    const [, repo, tag] = /^([^/\s]+\/\S*?[^/:\s])(?::([^/:\s]+))?$/.exec(text) ?? [];
    return repo === undefined || /[^\w.:/*-]/.test(text) ? undefined : new Pattern(text, repo, tag);
  }

  private constructor(text: string, repo: string, tag: string | undefined) {
    this.text = text;
    const [registry, ...rest] = repo.split('/');
    // As names are normalised: on Docker Hub a bare name is an official image.
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

/** `standFor`: what one or several asterisks stand for, as a part of a regular expression. */
export function globToRegExp(text: string, standFor: (stars: string) => string): RegExp {
  const source = text.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replace(/\*+/g, standFor);
  return new RegExp(`^${source}$`);
}

/** Throws `OperationError` when the text is not a pattern. */
export function patternOf(text: string): Pattern {
  const pattern = Pattern.parse(text);
  if (pattern) return pattern;
  throw new OperationError(`${text}: not a pattern such as "alpine", "alpine:3*" or "ghcr.io/acme/**"`);
}

/**
 * The pattern that an operator means, written as images are named: `alpine` is `docker.io/library/alpine`, and what comes before
 * the first slash is a registry only if it looks like a host. Throws `OperationError`.
 */
export function imagePatternOf(text: string): Pattern {
  const [first = '', ...rest] = text.split('/');
  // A bare host is no image, and `**` alone may be meant for every registry.
  if (rest.length === 0)
    return patternOf(/^[^:]*(?:\.|\*\*)/.test(text) ? text : `docker.io/library/${text}`);
  return patternOf(/[.:*]/.test(first) || first === 'localhost' ? text : `docker.io/${text}`);
}
