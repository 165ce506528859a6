export interface BreakerOptions {
  /** Failures in a row that open it (10). */
  readonly failuresMax?: number;
  /** Wait before the first probe, and the longest one; it doubles from one to the other. */
  readonly probeMs?: { readonly first: number; readonly max: number };
}

/**
 * Keeps a worker from spending its slots on an endpoint that fails: after ten failures in a row there is one probe at a time, at
 * a growing distance, until one succeeds. A receiver that names a time (Retry-After) is left alone until then.
 */
export class Breaker {
  readonly #failuresMax: number;
  readonly #probeMs: { readonly first: number; readonly max: number };
  #failures = 0;
  #probes = 0;
  #isOpen = false;
  /** When the next probe may begin; on the process's monotonic clock. */
  #probesAt = 0;
  /** Until when the receiver wants to be left alone. */
  #heldUntil = 0;

  constructor(options: BreakerOptions = {}) {
    this.#failuresMax = options.failuresMax ?? 10;
    this.#probeMs = options.probeMs ?? { first: 1000, max: 60_000 };
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** When something may be sent: 0 for now. */
  waitMs(now: number): number {
    return Math.max(0, this.#probesAt - now, this.#heldUntil - now);
  }

  /** What the receiver has asked for holds all the same: this may have been under way before it did. */
  succeeded(): void {
    this.#failures = 0;
    this.#probes = 0;
    this.#isOpen = false;
    this.#probesAt = 0;
  }

  /** Whether this failure opened it. What was under way when it opened does not push the next probe away. */
  failed(now: number): boolean {
    this.#failures += 1;
    if (this.#failures < this.#failuresMax || now < this.#probesAt) return false;
    const wasOpen = this.#isOpen;
    this.#isOpen = true;
    const longestMs = Math.min(this.#probeMs.max, this.#probeMs.first * 2 ** this.#probes);
    this.#probes = Math.min(this.#probes + 1, 30);
    // probes of several workers shall not come together
    this.#probesAt = now + longestMs * (0.75 + Math.random() / 4);
    return !wasOpen;
  }

  /** The receiver asked to be left alone for so long. */
  hold(now: number, ms: number): void {
    this.#heldUntil = Math.max(this.#heldUntil, now + ms);
  }

  /** Its endpoint was changed, or somebody resumed it: what was known of it counts no more. */
  reset(): void {
    this.succeeded();
    this.#heldUntil = 0;
  }
}
