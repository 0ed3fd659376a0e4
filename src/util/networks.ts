import ipaddr from 'ipaddr.js';

type Network = ReturnType<typeof ipaddr.parseCIDR>;

/** A set of networks and single addresses. */
export class Networks {
  /** As they were written. */
  readonly texts: readonly string[];
  readonly #networks: readonly Network[];

  /** Throws for what is neither an address nor a network: see `isNetwork`. */
  constructor(texts: readonly string[]) {
    this.texts = texts;
    this.#networks = texts.map(parse);
  }

  /** IPv4 in IPv6 counts as IPv4. */
  contains(address: string): boolean {
    if (!ipaddr.isValid(address)) return false;
    const ip = ipaddr.process(address);
    return this.#networks.some((network) => network[0].kind() === ip.kind() && ip.match(network));
  }
}

/** `10.0.0.0/8`, `2001:db8::/32`, or an address. */
export function isNetwork(text: string): boolean {
  try {
    parse(text);
    return true;
  } catch {
    return false;
  }
}

/** Neither `10/8` nor an octal address: they do not mean what they seem to. */
function parse(text: string): Network {
  const [address = ''] = text.split('/');
  if (!address.includes(':') && !ipaddr.IPv4.isValidFourPartDecimal(address))
    throw new Error('not an address');
  if (/^::ffff:/i.test(address)) throw new Error('IPv4 is written as such');
  if (text.includes('/')) return ipaddr.parseCIDR(text);
  const ip = ipaddr.parse(text);
  return [ip, ip.kind() === 'ipv4' ? 32 : 128] as Network;
}

/** `::ffff:10.0.0.1` is 10.0.0.1 on a socket that takes both. */
export function plainAddress(address: string): string {
  return address.startsWith('::ffff:') && address.includes('.') ? address.slice('::ffff:'.length) : address;
}

/** What one client has to itself: an IPv4 address, or a /64 of IPv6. */
export function clientNetwork(address: string): string {
  if (!address.includes(':') || !ipaddr.IPv6.isValid(address)) return address;
  return ipaddr.IPv6.parse(address)
    .parts.slice(0, 4)
    .map((part) => part.toString(16))
    .join(':');
}
