import { z } from 'zod';
import { isRegistryName, RegistryPattern } from '../mirror/registry-pattern.ts';
import { smallSize } from '../oci/content.ts';
import { Pattern } from '../oci/pattern.ts';
import { isNetwork, Networks } from '../util/networks.ts';
import { parseDuration, parseSize } from '../util/units.ts';

/** A value from JSON or from an environment variable. `parse` returns undefined if it is invalid. */
function scalar<T>(expected: string, parse: (value: unknown) => T | undefined) {
  return z.unknown().transform((value, context): T => {
    const parsed = parse(value);
    if (parsed !== undefined) return parsed;
    context.addIssue({ code: 'custom', message: expected, input: value });
    return z.NEVER;
  });
}

const duration = scalar('a duration such as "90s", "5m" or "30d"', parseDuration);
const durationOrOff = scalar('a duration such as "90s" or "30d", or "off"', (value) =>
  value === 'off' ? 0 : parseDuration(value),
);
/** Node's timers take at most 2^31 - 1 ms. */
const longestTimerMs = 2 ** 31 - 1;
const timeout = (leastMs: number) =>
  scalar(`a duration of ${leastMs} ms to 24 days such as "500ms", "90s" or "5m"`, (value) => {
    const ms = parseDuration(value);
    return ms !== undefined && ms >= leastMs && ms <= longestTimerMs ? ms : undefined;
  });
const sizeFrom = (least: number, expected: string) =>
  scalar(expected, (value) => {
    const bytes = parseSize(value);
    return bytes !== undefined && bytes >= least ? bytes : undefined;
  });
const sizeOr = (off: number) =>
  scalar('a size such as "512MB" or "50GiB", or "off"', (value) =>
    value === 'off' ? off : parseSize(value),
  );
const wholeNumber = (least: number, expected: string) =>
  scalar(expected, (value) => {
    const figure = typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : value;
    return Number.isSafeInteger(figure) && Number(figure) >= least ? Number(figure) : undefined;
  });
const count = wholeNumber(1, 'a whole number above 0');
const countOrOff = scalar('a whole number above 0, or "off"', (value) => {
  if (value === 'off') return Infinity;
  const figure = typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : value;
  return typeof figure === 'number' && Number.isSafeInteger(figure) && figure > 0 ? figure : undefined;
});
const flag = scalar('true or false', (value) =>
  value === true || value === 'true' ? true : value === false || value === 'false' ? false : undefined,
);
const text = z.string().min(1);

export interface Address {
  readonly host: string;
  readonly port: number;
}

function parseAddress(value: unknown): Address | undefined {
  if (typeof value !== 'string') return undefined;
  const [, v6, host, digits] = /^(?:\[([0-9a-f:.]+)\]|([^:[\]]+)):(\d{1,5})$/i.exec(value) ?? [];
  const port = Number(digits);
  const name = v6 ?? host;
  return name !== undefined && port <= 65535 ? { host: name, port } : undefined;
}

const address = scalar('an address such as "0.0.0.0:5000" or "[::]:5000"', parseAddress);
const addressOrOff = scalar('an address such as "127.0.0.1:5001", or "off"', (value) =>
  value === 'off' ? null : parseAddress(value),
);
const baseUrl = scalar('a URL such as "https://registry.example.com", without user or query', (value) => {
  const url = typeof value === 'string' ? URL.parse(value) : null;
  const isBase =
    url && /^https?:$/.test(url.protocol) && url.username + url.password + url.search + url.hash === '';
  return isBase ? url : undefined;
});
const proxyUrl = scalar('a URL such as "http://proxy.example.com:3128", or "off"', (value) => {
  if (value === 'off') return null;
  const url = typeof value === 'string' ? URL.parse(value) : null;
  return url && isProxy(url) ? url : undefined;
});

/** Whether it is a usable proxy URL. */
export function isProxy({ protocol, username, password }: URL): boolean {
  try {
    decodeURIComponent(username + password);
    return /^https?:$/.test(protocol);
  } catch {
    return false;
  }
}
function isRealm(text: string): boolean {
  const url = URL.parse(text);
  return url !== null && /^https?:$/.test(url.protocol) && url.username + url.password + url.search === '';
}

const host = 'a host such as "docker.io" or "registry.example.com:5000"';
const registryName = z.string().refine((value) => isRegistryName(value) && value !== 'v2', host);
const registryOrPattern = z
  .string()
  .refine(
    (value) => registryName.safeParse(value).success || RegistryPattern.parse(value) !== undefined,
    `${host}, or a pattern such as "*.azurecr.io" that ends in a registrable domain: a pattern that matches any host makes an open proxy`,
  );

const pattern = scalar('a pattern such as "docker.io/library/*:3.*" or "ghcr.io/acme/**"', (value) =>
  typeof value === 'string' ? Pattern.parse(value) : undefined,
);

const patterns = z.array(pattern);
const networks = z
  .array(z.string().refine(isNetwork, 'an address or network such as "10.0.0.0/8" or "2001:db8::/32"'))
  .transform((texts) => new Networks(texts));

const secret = z.union([text, z.strictObject({ env: text }), z.strictObject({ file: text })]);

const account = z
  .strictObject({
    username: text.optional(),
    password: secret.optional(),
    anonymous: z.literal(true).optional(),
  })
  .refine(
    ({ username, password, anonymous }) =>
      anonymous ? !username && !password : username !== undefined && password !== undefined,
    'username and password, or { "anonymous": true }',
  );

const upstream = z.strictObject({
  registry: registryOrPattern,
  url: baseUrl.optional(),
  aliases: z.array(registryName).optional(),
  hosts: z.array(registryName).default([]),
  accounts: z.array(account).default([]),
  dockerConfig: text.optional(),
  credentialHelper: z
    .string()
    .regex(/^[\w.-]+$/, 'the name of a credential helper such as "ecr-login"')
    .optional(),
  realms: z.array(z.string().refine(isRealm, 'a URL such as "https://auth.example.com/token"')).optional(),
  ca: text.optional(),
  cert: text.optional(),
  key: text.optional(),
  insecureSkipVerify: flag.prefault(false),
  private: flag.prefault(false),
  proxy: proxyUrl.optional(),
  allowPrivateNetwork: flag.prefault(false),
  tags: z.strictObject({ ttl: duration.optional() }).prefault({}),
  maxConnections: count.prefault(32),
});

/** All configuration keys with their types and defaults. */
export const schema = z.strictObject({
  listen: address.prefault('0.0.0.0:5000'),
  tls: z.strictObject({ cert: text, key: text, clientCa: text.optional() }).optional(),
  trustedProxies: networks.optional(),
  adminListen: addressOrOff.prefault('127.0.0.1:5001'),
  adminToken: secret.optional(),
  log: z
    .strictObject({ level: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace']).default('info') })
    .prefault({}),
  store: z
    .strictObject({
      path: text.default('data'),
      maxBytes: sizeOr(Infinity).prefault('50GB'),
      minFreeBytes: sizeOr(0).prefault('2GB'),
      maxIdle: durationOrOff.prefault('off'),
      pins: patterns.default([]),
      scrubEvery: durationOrOff.prefault('7d'),
    })
    .prefault({}),
  upstreams: z
    .array(upstream)
    .min(1, 'at least one upstream')
    .prefault([{ registry: 'docker.io' }]),
  defaultUpstream: registryName.optional(),
  allow: patterns.optional(),
  deny: patterns.default([]),
  clients: z
    .strictObject({
      htpasswd: text.optional(),
      allowFrom: networks.optional(),
      maxRequestsPerSecond: countOrOff.prefault('off'),
      maxConnections: countOrOff.prefault('off'),
      groups: z
        .array(
          z.strictObject({
            name: text,
            from: networks.optional(),
            users: z.array(text).optional(),
            allow: patterns.optional(),
            deny: patterns.default([]),
          }),
        )
        .default([]),
    })
    .prefault({}),
  tags: z
    .strictObject({
      ttl: duration.prefault('5m'),
      staleIfError: durationOrOff.prefault('30d'),
      negativeTtl: durationOrOff.prefault('10s'),
      revalidate: z.enum(['wait', 'behind']).default('wait'),
      whenGone: z.enum(['404', 'keep']).default('404'),
      rules: z.array(z.strictObject({ match: pattern, ttl: duration })).default([]),
    })
    .prefault({}),
  fetch: z
    .strictObject({
      connectionsPerBlob: count.prefault(4),
      spanBytes: sizeFrom(smallSize + 1, 'a size above 64 KiB such as "16MiB"').prefault('16MiB'),
      maxConnections: count.prefault(64),
      prefetch: z.enum(['chain', 'off']).default('chain'),
      connectTimeout: timeout(10).prefault('5s'),
      headersTimeout: timeout(10).prefault('20s'),
      idleTimeout: timeout(10).prefault('30s'),
      giveUpAfter: timeout(10).prefault('30s'),
      firstByteTimeout: timeout(100).prefault('25s'),
      completeRanges: flag.prefault(true),
      maxManifestBytes: sizeFrom(64 * 1024, 'a size of at least 64 KiB such as "8MiB"').prefault('8MiB'),
    })
    .prefault({}),
  quota: z
    .strictObject({
      reserve: wholeNumber(0, 'a whole number').prefault(10),
      whenSpent: scalar<429 | 503>('"429" or "503"', (value) =>
        String(value) === '429' ? 429 : String(value) === '503' ? 503 : undefined,
      ).prefault('429'),
    })
    .prefault({}),
});

export type SecretConfig = z.infer<typeof secret>;
export type Parsed = z.infer<typeof schema>;
