import { faultOf } from '#db/errors.ts';

/** What failed of one piece of work among many: the others get their turn, and the run fails at its end. */
export class Failures {
  #first: unknown;
  #count = 0;

  /** Throws what concerns all pieces, not only this one. */
  add(error: unknown): void {
    const fault = faultOf(error);
    if (fault === 'term_over' || fault === 'unavailable' || fault === 'outcome_unknown')
      throw error;
    if (this.#count === 0) this.#first = error;
    this.#count += 1;
  }

  throwIfAny(): void {
    if (this.#count === 0) return;
    throw this.#count === 1
      ? this.#first
      : new Error(`${this.#count} pieces of work failed`, { cause: this.#first });
  }
}
