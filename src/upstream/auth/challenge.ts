/** One challenge of a WWW-Authenticate header. */
export interface Challenge {
  /** Lower case: `bearer`, `basic`. */
  readonly scheme: string;
  /** Names in lower case. */
  readonly params: Readonly<Record<string, string>>;
}

/** The authentication schemes that an upstream accepts. */
export interface Scheme {
  readonly bearer: { readonly realm: string; readonly service: string | undefined } | undefined;
  readonly basic: boolean;
}

const token = /[!#$%&'*+.^_`|~\w-]+/y;
const separator = /[\s,]*/y;
const equals = /\s*=\s*/y;
const quoted = /"((?:[^"\\]|\\.)*)"?/y;
// Some servers omit the quotes, so bare values may contain colons and slashes.
const bare = /[^\s,"]*/y;

/**
 * Parses WWW-Authenticate (RFC 9110, 11.6.1): several headers, several challenges in one, quoted and unquoted values,
 * unknown schemes. Skips what it cannot parse.
 */
export function parseChallenges(headers: string | string[] | undefined): Challenge[] {
  return [headers ?? []].flat().flatMap(parseHeader);
}

function parseHeader(header: string): Challenge[] {
  const challenges: { scheme: string; params: Record<string, string> }[] = [];
  let at = 0;
  const match = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = at;
    const found = pattern.exec(header);
    if (!found) return undefined;
    at = pattern.lastIndex;
    return found[1] ?? found[0];
  };
  for (;;) {
    match(separator);
    if (at >= header.length) return challenges;
    const name = match(token)?.toLowerCase();
    if (name === undefined) {
      at += 1;
      continue;
    }
    const current = challenges.at(-1);
    if (match(equals) === undefined) challenges.push({ scheme: name, params: {} });
    else {
      const value = header[at] === '"' ? match(quoted)?.replace(/\\(.)/g, '$1') : match(bare);
      if (current && value !== undefined) current.params[name] ??= value;
    }
  }
}

/** The scheme of the challenges: the first Bearer with a realm, and whether Basic is accepted. */
export function schemeOf(challenges: readonly Challenge[]): Scheme {
  const params = challenges.find((each) => each.scheme === 'bearer' && each.params['realm'])?.params;
  const realm = params?.['realm'];
  return {
    bearer: realm === undefined ? undefined : { realm, service: params?.['service'] },
    basic: challenges.some(({ scheme }) => scheme === 'basic'),
  };
}
