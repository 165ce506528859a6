const spanMs = 500;

/** How often something happened lately: counted over the span that runs and the one before it. */
export class Rate {
  #startedAt = -Infinity;
  #current = 0;
  #previous = 0;

  count(now: number): void {
    this.#roll(now);
    this.#current += 1;
  }

  perSecond(now: number): number {
    this.#roll(now);
    const share = Math.min(1, (now - this.#startedAt) / spanMs);
    // the younger the running span, the more the one before it says
    return ((this.#previous * (1 - share) + this.#current) * 1000) / spanMs;
  }

  #roll(now: number): void {
    const elapsed = now - this.#startedAt;
    if (elapsed < spanMs) return;
    this.#previous = elapsed < 2 * spanMs ? this.#current : 0;
    this.#current = 0;
    this.#startedAt = elapsed < 2 * spanMs ? this.#startedAt + spanMs : now;
  }
}
