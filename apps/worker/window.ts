const initial = 4;

/**
 * How many deliveries of one subscription may be in flight. It begins small and grows with each good answer while events wait for it, so
 * that an endpoint which hangs from the start holds few slots; what gets no answer makes it smaller.
 */
export class Window {
  readonly #max: number;
  #size: number;

  /** `slots`: of the whole worker. One subscription gets three quarters at most, or one that hangs would stop the others. */
  constructor(slots: number) {
    this.#max = Math.max(1, Math.floor((slots * 3) / 4));
    this.#size = Math.min(initial, this.#max);
  }

  get size(): number {
    return this.#size;
  }

  /** `inFlight`, `waiting`: as they were with this delivery; something that waits could have gone if there were more room. */
  worked(inFlight: number, waiting: number): void {
    const isTooSmall = waiting > 0 && inFlight * 2 > this.#size;
    if (isTooSmall && this.#size < this.#max) this.#size += 1;
  }

  unanswered(): void {
    this.#size = Math.max(1, this.#size - 2);
  }
}
