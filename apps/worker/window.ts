const initial = 8;

/**
 * How many deliveries of one subscription may be in flight. It begins small and grows with each answer while it is used up, so
 * that an endpoint which hangs from the start holds few slots; what gets no answer makes it smaller.
 */
export class Window {
  readonly #max: number;
  #size: number;

  /** `slots`: of the whole worker. One subscription never gets them all, or one that hangs would stop the others. */
  constructor(slots: number) {
    this.#max = Math.max(1, Math.floor((slots * 3) / 4));
    this.#size = Math.min(initial, this.#max);
  }

  get size(): number {
    return this.#size;
  }

  /** `inFlight`: as it was with this delivery. */
  answered(inFlight: number): void {
    if (inFlight >= this.#size && this.#size < this.#max) this.#size += 1;
  }

  unanswered(): void {
    this.#size = Math.max(1, this.#size - 2);
  }
}
