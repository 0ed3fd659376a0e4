import type { Login } from '../accounts/credentials.ts';

/** The `Authorization` header to send, and its origin. */
export interface Authorization {
  readonly header: string | undefined;
  /** The challenge that it answers. If the same challenge comes again, the repo is not accessible. */
  readonly challenge: string;
  readonly fresh: boolean;
  /** Made without credentials. */
  readonly isPublic: boolean;
}

export const noAuthorization: Authorization = {
  header: undefined,
  challenge: '',
  fresh: false,
  isPublic: true,
};

/** A login as the Basic scheme sends it (RFC 7617). */
export function basicHeader({ username, password }: Login): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
}
