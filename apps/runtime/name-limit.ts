/** What all names are counted under that come after the first so many. A topic or subscription of this name is counted with them. */
export const otherName = 'other';

/**
 * Bounds how many names become values of a label. The first ones keep a value of their own for the life of the process, also
 * when what they name is deleted: a counter that vanished and came back would look like one that was set back to 0.
 */
export class NameLimit {
  readonly #max: number;
  readonly #names = new Set<string>();

  constructor(max: number) {
    this.#max = max;
  }

  /** The name itself, or `other`. */
  labelOf(name: string): string {
    if (this.#names.has(name)) return name;
    if (this.#names.size >= this.#max) return otherName;
    this.#names.add(name);
    return name;
  }
}
