import type { LookupAddress } from 'node:dns';
import { lookup as lookUpAddresses } from 'node:dns/promises';
import { BlockList, isIP, type LookupFunction } from 'node:net';

/**
 * Addresses that are not of the public internet (IANA's special-purpose registries), and so belong to whoever runs the
 * broker rather than to who subscribes. Of IPv6 only 2000::/3 is global unicast: what lies outside is denied as a whole.
 */
const DENIED = [
  '0.0.0.0/8', // this host
  '10.0.0.0/8',
  '100.64.0.0/10', // carrier-grade NAT
  '127.0.0.0/8',
  '169.254.0.0/16', // link-local, and where clouds keep the metadata of a machine
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.0.2.0/24', // documentation
  '192.88.99.0/24', // 6to4 relays
  '192.168.0.0/16',
  '198.18.0.0/15', // benchmarks
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/4', // multicast
  '240.0.0.0/4', // reserved, and broadcast
  '::/3', // loopback, addresses that carry an IPv4 one (64:ff9b::/96 …), discard-only
  '2001::/23', // Teredo, ORCHID, benchmarks
  '2001:db8::/32',
  '2002::/16', // 6to4
  '3fff::/20',
  '4000::/2', // with segment routing's 5f00::/16
  '8000::/1', // unique local, link-local, site-local, multicast
];

const ENDPOINT_LENGTH_MAX = 2048;
const LOWEST_FREE_PORT = 1024;
/** Of one name, while its look-up is under way. */
const WAITING_MAX = 10_000;
const ADDRESSES_SHOWN_MAX = 3;
const RESOLVE_TIMEOUT_MS = 5000;

/** A connection to an address, or a name that has only such addresses, that push may not reach. */
export class EgressDenied extends Error {
  override readonly name = 'EgressDenied';
  readonly code = 'EGRESS_DENIED';

  constructor(what: string) {
    super(`endpoint not allowed: ${what}`);
  }
}

/** Looks up all addresses of a name. */
export type Resolver = (hostname: string) => Promise<LookupAddress[]>;

export interface EgressOptions {
  /** The system's (getaddrinfo, so /etc/hosts too) unless given. */
  readonly resolver?: Resolver;
}

/**
 * Where push may connect to. A name that has allowed and forbidden addresses is reached at the allowed ones: sockets
 * connect to nothing but what `lookup` has checked, so that a later answer of the resolver changes nothing.
 */
export interface EgressPolicy {
  /** What is wrong with the URL of an endpoint, as the end of a sentence (`must …`); no name is looked up. */
  endpointFault(endpoint: string): string | undefined;
  /** Of an address, not a name. */
  isAllowed(address: string): boolean;
  /** The allowed addresses of a name or address; rejects with EgressDenied, or as the look-up fails. */
  resolve(hostname: string, options?: { readonly timeoutMs?: number }): Promise<LookupAddress[]>;
  /** For net.connect and tls.connect, which ask it about names only: an address has to be checked before. */
  readonly lookup: LookupFunction;
}

/**
 * @param allowPrivateTargets addresses and CIDR ranges that are opened; those of IPv4 are open as IPv4-mapped IPv6 as well
 * @throws where one of them is neither
 */
export function createEgressPolicy(
  allowPrivateTargets: readonly string[],
  { resolver = lookUpAll }: EgressOptions = {},
): EgressPolicy {
  const denied = rangesOf(DENIED);
  const opened = rangesOf(allowPrivateTargets);
  const isAllowed = (address: string): boolean => {
    const judged = judgedAddress(address);
    return judged !== undefined && (!holds(denied, judged) || holds(opened, judged));
  };
  const shared = coalesced(resolver);
  const allowedOf = async (hostname: string): Promise<LookupAddress[]> => {
    const address = withoutBrackets(hostname);
    const family = isIP(address);
    if (family !== 0) {
      if (!isAllowed(address)) throw new EgressDenied(address);
      return [{ address, family }];
    }
    const addresses = await shared(hostname);
    const allowed = addresses.filter((each) => isAllowed(each.address));
    if (allowed.length > 0) return allowed;
    const shown = addresses.slice(0, ADDRESSES_SHOWN_MAX).map((each) => each.address);
    throw new EgressDenied(`${hostname} is ${shown.join(', ') || 'no address'}`);
  };
  return {
    endpointFault: (endpoint) => endpointFault(endpoint, isAllowed),
    isAllowed,
    resolve: (hostname, { timeoutMs = RESOLVE_TIMEOUT_MS } = {}) =>
      withTimeout(allowedOf(hostname), timeoutMs, hostname),
    lookup: lookupFunction(allowedOf),
  };
}

async function lookUpAll(hostname: string): Promise<LookupAddress[]> {
  return lookUpAddresses(hostname, { all: true });
}

interface JudgedAddress {
  readonly address: string;
  readonly family: 'ipv4' | 'ipv6';
}

/** IPv4-mapped and IPv4-compatible addresses in the spelling of WHATWG URL; :: and ::1 are neither. */
const CARRIES_IPV4 = /^::(?:ffff:)?([0-9a-f]{1,4}):([0-9a-f]{1,4})$/;

/** An address as it is judged: IPv4 inside of IPv6 is IPv4. Undefined for what is none, or names a zone of this host. */
function judgedAddress(address: string): JudgedAddress | undefined {
  const version = isIP(address);
  if (version === 4) return { address, family: 'ipv4' };
  if (version !== 6 || address.includes('%')) return undefined;
  const spelled = withoutBrackets(new URL(`http://[${address}]/`).hostname);
  const carried = CARRIES_IPV4.exec(spelled);
  if (carried === null) return { address: spelled, family: 'ipv6' };
  const bytes = carried
    .slice(1)
    .map((group) => Number.parseInt(group, 16))
    .flatMap((group) => [group >> 8, group & 0xff]);
  return { address: bytes.join('.'), family: 'ipv4' };
}

/** One list for each family: in a list with both, an IPv6 range such as ::/3 holds every IPv4 address as its mapped form. */
type Ranges = Readonly<Record<JudgedAddress['family'], BlockList>>;

function rangesOf(ranges: readonly string[]): Ranges {
  const lists = { ipv4: new BlockList(), ipv6: new BlockList() };
  for (const range of ranges) {
    const [address = '', prefix, ...rest] = range.split('/');
    const judged = judgedAddress(address);
    const isMapped = judged?.family === 'ipv4' && isIP(address) === 6;
    const isValid = rest.length === 0 && (prefix === undefined || /^\d{1,3}$/.test(prefix));
    if (judged === undefined || !isValid || isMapped) {
      throw new Error(`${range} is no address and no CIDR range such as 10.0.0.0/8 or fd00::/8`);
    }
    const bits = judged.family === 'ipv4' ? 32 : 128;
    lists[judged.family].addSubnet(judged.address, Number(prefix ?? bits), judged.family);
  }
  return lists;
}

function holds(ranges: Ranges, { address, family }: JudgedAddress): boolean {
  return ranges[family].check(address, family);
}

function withoutBrackets(hostname: string): string {
  return hostname.startsWith('[') ? hostname.slice(1, -1) : hostname;
}

function endpointFault(
  endpoint: string,
  isAllowed: (address: string) => boolean,
): string | undefined {
  if (endpoint.length > ENDPOINT_LENGTH_MAX) {
    return `must have at most ${ENDPOINT_LENGTH_MAX} characters`;
  }
  // What URL would drop, or take for a slash: nobody should read another host than is connected to.
  // oxlint-disable-next-line no-control-regex
  if (/[\u0000-\u0020\u007f\\]/.test(endpoint)) {
    return 'must have no white space, control characters or backslashes';
  }
  const url = URL.parse(endpoint);
  if (url === null || !/^https?:\/\/[^/]/i.test(endpoint)) {
    return 'must be a URL that begins with http:// or https:// and a host';
  }
  if (/^https?:\/\/[^/?#]*@/i.test(endpoint)) return 'must have no user name or password';
  if (endpoint.includes('#')) return 'must have no fragment';
  const port = url.port === '' ? 80 : Number(url.port);
  if (port !== 80 && port !== 443 && port < LOWEST_FREE_PORT) {
    return `must have port 80, 443 or one from ${LOWEST_FREE_PORT} on`;
  }
  const host = withoutBrackets(url.hostname);
  if (isIP(host) !== 0 && !isAllowed(host)) {
    return `must not lead to ${host}, which ALLOW_PRIVATE_TARGETS does not open`;
  }
  return undefined;
}

/**
 * Look-ups of one name at the same time are one: getaddrinfo holds a thread of libuv's pool until it ends, and cannot be
 * cancelled, so a name whose server is dead may hold one thread, not all.
 */
function coalesced(resolver: Resolver): Resolver {
  const underWay = new Map<
    string,
    { readonly addresses: Promise<LookupAddress[]>; waiting: number }
  >();
  return async (hostname) => {
    const running = underWay.get(hostname);
    if (running !== undefined) {
      if (running.waiting >= WAITING_MAX)
        throw new Error('too many wait for the address of a name');
      running.waiting += 1;
      return running.addresses;
    }
    const addresses = resolver(hostname).finally(() => underWay.delete(hostname));
    underWay.set(hostname, { addresses, waiting: 1 });
    return addresses;
  };
}

function lookupFunction(allowedOf: Resolver): LookupFunction {
  return (hostname, options, callback) => {
    void answerLookup(allowedOf, hostname, options, callback);
  };
}

async function answerLookup(
  allowedOf: Resolver,
  hostname: string,
  options: Parameters<LookupFunction>[1],
  callback: Parameters<LookupFunction>[2],
): Promise<void> {
  const family = familyOf(options.family);
  let found: LookupAddress[];
  try {
    found = (await allowedOf(hostname)).filter((each) => family === 0 || each.family === family);
  } catch (error) {
    callback(error as NodeJS.ErrnoException, []);
    return;
  }
  const first = found[0];
  if (first === undefined) {
    const error = new Error(`${hostname} has no address of IPv${family}`);
    callback(Object.assign(error, { code: 'ENOTFOUND' }), []);
  } else if (options.all === true) {
    callback(null, found);
  } else {
    callback(null, first.address, first.family);
  }
}

function familyOf(family: number | 'IPv4' | 'IPv6' | undefined): number {
  if (family === 'IPv4') return 4;
  return family === 'IPv6' ? 6 : (family ?? 0);
}

async function withTimeout<Value>(
  value: Promise<Value>,
  timeoutMs: number,
  hostname: string,
): Promise<Value> {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => reject(new Error(`no address of ${hostname} was found in ${timeoutMs} ms`)),
    timeoutMs,
  );
  try {
    return await Promise.race([value, promise]);
  } finally {
    clearTimeout(timer);
  }
}
