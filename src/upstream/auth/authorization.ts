import type { Login } from '../accounts/credentials.ts';

/** What to send as `Authorization`, and where it came from. */
export interface Authorization {
  readonly header: string | undefined;
  /** The challenge that it answers; a repeated one, refused, means that the repo is not for us. */
  readonly challenge: string;
  readonly fresh: boolean;
  /** No credentials are behind it: whoever asks gets the same. */
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
