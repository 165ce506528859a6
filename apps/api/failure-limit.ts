export interface FailureLimitOptions {
  readonly max: number;
  readonly windowMs: number;
  /** Addresses that are remembered (10,000); past it the oldest is forgotten. */
  readonly addressesMax?: number;
}

/** Counts failures by address, in windows that begin with the first one. */
export class FailureLimit {
  readonly #options: FailureLimitOptions;
  readonly #windows = new Map<string, { count: number; readonly endsAt: number }>();

  constructor(options: FailureLimitOptions) {
    this.#options = options;
  }

  /** How long an address must wait; 0 when it need not. */
  waitMs(address: string): number {
    const window = this.#windows.get(networkOf(address));
    if (window === undefined || window.count < this.#options.max) return 0;
    return Math.max(0, window.endsAt - performance.now());
  }

  /** Another failure came from an address. */
  note(address: string): void {
    const { windowMs, addressesMax = 10_000 } = this.#options;
    const network = networkOf(address);
    const now = performance.now();
    const window = this.#windows.get(network);
    if (window !== undefined && now < window.endsAt) {
      window.count += 1;
      return;
    }
    this.#windows.delete(network);
    this.#windows.set(network, { count: 1, endsAt: now + windowMs });
    if (this.#windows.size <= addressesMax) return;
    const oldest = this.#windows.keys().next();
    if (oldest.done !== true) this.#windows.delete(oldest.value);
  }
}

/** An IPv4 address itself; of an IPv6 address the /64 that one subscriber has to itself. */
export function networkOf(address: string): string {
  if (!address.includes(':')) return address;
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address);
  if (mapped?.[1] !== undefined) return mapped[1];
  const [head = '', tail = ''] = address.split('%', 1)[0]?.split('::') ?? [];
  const before = head === '' ? [] : head.split(':');
  const after = tail === '' ? [] : tail.split(':');
  const zeros = Array.from({ length: Math.max(0, 8 - before.length - after.length) }, () => '0');
  const groups = [...before, ...zeros, ...after].slice(0, 4);
  return groups.map((group) => Number.parseInt(group, 16).toString(16)).join(':');
}
