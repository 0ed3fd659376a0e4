/** One way to authenticate that a server names in WWW-Authenticate. */
export interface Challenge {
  /** Lower case: `bearer`, `basic`. */
  readonly scheme: string;
  /** Names in lower case. */
  readonly params: Readonly<Record<string, string>>;
}

/** How an upstream wants to be asked. */
export interface Scheme {
  readonly bearer: { readonly realm: string; readonly service: string | undefined } | undefined;
  readonly basic: boolean;
}

const token = /[!#$%&'*+.^_`|~\w-]+/y;
const separator = /[\s,]*/y;
const equals = /\s*=\s*/y;
const quoted = /"((?:[^"\\]|\\.)*)"?/y;
// Unquoted values come with colons and slashes from servers that forget the quotes.
const bare = /[^\s,"]*/y;

/**
 * Reads WWW-Authenticate: several headers, several challenges in one, quoted and unquoted values, unknown schemes beside
 * known ones (RFC 9110 section 11.6.1). What makes no sense is passed over.
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

/** The scheme that challenges ask for: the first Bearer with a realm, and whether Basic is taken too. */
export function schemeOf(challenges: readonly Challenge[]): Scheme {
  const params = challenges.find((each) => each.scheme === 'bearer' && each.params['realm'])?.params;
  const realm = params?.['realm'];
  return {
    bearer: realm === undefined ? undefined : { realm, service: params?.['service'] },
    basic: challenges.some(({ scheme }) => scheme === 'basic'),
  };
}
