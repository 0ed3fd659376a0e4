import ipaddr from 'ipaddr.js';

type Network = ReturnType<typeof ipaddr.parseCIDR>;

/** A set of networks and single addresses. */
export class Networks {
  /** The configured texts. */
  readonly texts: readonly string[];
  readonly #networks: readonly Network[];

  /** Throws for an invalid text: see `isNetwork`. */
  constructor(texts: readonly string[]) {
    this.texts = texts;
    this.#networks = texts.map(parse);
  }

  /** IPv4-mapped IPv6 addresses count as IPv4. */
  contains(address: string): boolean {
    if (!ipaddr.isValid(address)) return false;
    const ip = ipaddr.process(address);
    return this.#networks.some((network) => network[0].kind() === ip.kind() && ip.match(network));
  }
}

/** Whether the text is an address or a CIDR network: `10.0.0.0/8`, `2001:db8::/32`. */
export function isNetwork(text: string): boolean {
  try {
    parse(text);
    return true;
  } catch {
    return false;
  }
}

/** Refuses `10/8` and octal addresses: they are easily misread. */
function parse(text: string): Network {
  const [address = ''] = text.split('/');
  if (!address.includes(':') && !ipaddr.IPv4.isValidFourPartDecimal(address))
    throw new Error('not an address');
  if (/^::ffff:/i.test(address)) throw new Error('IPv4-mapped: write it as IPv4');
  if (text.includes('/')) return ipaddr.parseCIDR(text);
  const ip = ipaddr.parse(text);
  return [ip, ip.kind() === 'ipv4' ? 32 : 128] as Network;
}

/** Unmaps `::ffff:10.0.0.1`, the form of IPv4 peers on a dual-stack socket. */
export function plainAddress(address: string): string {
  return address.startsWith('::ffff:') && address.includes('.') ? address.slice('::ffff:'.length) : address;
}

/** Limits apply per IPv4 address, or per IPv6 /64. */
export function clientNetwork(address: string): string {
  if (!address.includes(':') || !ipaddr.IPv6.isValid(address)) return address;
  return ipaddr.IPv6.parse(address)
    .parts.slice(0, 4)
    .map((part) => part.toString(16))
    .join(':');
}
