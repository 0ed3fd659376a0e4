import { Pattern } from '../oci/pattern.ts';

/** What cannot be done, said so that the operator can mend it. */
export class OperationError extends Error {
  override readonly name = 'OperationError';
}

/** Throws `OperationError`. */
export function patternOf(text: string): Pattern {
  const pattern = Pattern.parse(text);
  if (pattern) return pattern;
  throw new OperationError(`${text}: not a pattern such as "docker.io/library/alpine:3*"`);
}
