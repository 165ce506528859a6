export interface LookupCacheOptions<Value> {
  readonly keptMs: number;
  /** How long it is remembered that nothing was found. */
  readonly missingKeptMs: number;
  readonly entriesMax: number;
  /** A shorter time for some values. */
  readonly keptMsOf?: (value: Value) => number;
}

interface Entry<Value> {
  readonly value: Value | undefined;
  /** On the process's own monotonic clock. */
  readonly keptUntil: number;
}

/**
 * Remembers the answers of a look-up by name: a bounded number of them, for a bounded time, until told to forget. Calls
 * for one name share one look-up; one that was under way when its name was forgotten is not remembered.
 */
export class LookupCache<Value> {
  readonly #lookUp: (name: string) => Promise<Value | undefined>;
  readonly #options: LookupCacheOptions<Value>;
  // In the order of their last use, so that the first is the one to drop.
  readonly #found = new Map<string, Entry<Value>>();
  // Apart, so that names that somebody makes up do not drive out those that exist.
  readonly #missing = new Map<string, Entry<Value>>();
  readonly #underWay = new Map<string, Promise<Value | undefined>>();

  constructor(
    lookUp: (name: string) => Promise<Value | undefined>,
    options: LookupCacheOptions<Value>,
  ) {
    this.#lookUp = lookUp;
    this.#options = options;
  }

  /** The value of a name, remembered or looked up; rejects as the look-up does. */
  async get(name: string): Promise<Value | undefined> {
    const entry = this.#found.get(name) ?? this.#missing.get(name);
    if (entry !== undefined && performance.now() < entry.keptUntil) {
      if (entry.value !== undefined) this.#remember(this.#found, name, entry);
      return entry.value;
    }
    return this.#underWay.get(name) ?? this.#begin(name);
  }

  /** Whether a value was found lately, even if it has to be looked up again. */
  wasFound(name: string): boolean {
    return this.#found.has(name);
  }

  /** Drops the answer for a name. */
  forget(name: string): void {
    this.#found.delete(name);
    this.#missing.delete(name);
    this.#underWay.delete(name);
  }

  /** Drops all answers; what was found lately stays known as such. */
  clear(): void {
    for (const [name, { value }] of this.#found) {
      this.#found.set(name, { value, keptUntil: -Infinity });
    }
    this.#missing.clear();
    this.#underWay.clear();
  }

  #begin(name: string): Promise<Value | undefined> {
    // Counted from before the look-up: its answer is as old as that.
    const startedAt = performance.now();
    const lookUp = this.#lookUp(name)
      .then((value) => {
        if (this.#underWay.get(name) === lookUp) this.#store(name, value, startedAt);
        return value;
      })
      .finally(() => {
        if (this.#underWay.get(name) === lookUp) this.#underWay.delete(name);
      });
    this.#underWay.set(name, lookUp);
    return lookUp;
  }

  #store(name: string, value: Value | undefined, startedAt: number): void {
    const { keptMs, missingKeptMs, keptMsOf } = this.#options;
    this.#found.delete(name);
    this.#missing.delete(name);
    if (value === undefined) {
      this.#remember(this.#missing, name, { value, keptUntil: startedAt + missingKeptMs });
    } else {
      const kept = Math.min(keptMs, keptMsOf?.(value) ?? keptMs);
      this.#remember(this.#found, name, { value, keptUntil: startedAt + kept });
    }
  }

  #remember(entries: Map<string, Entry<Value>>, name: string, entry: Entry<Value>): void {
    entries.delete(name);
    entries.set(name, entry);
    if (entries.size <= this.#options.entriesMax) return;
    const oldest = entries.keys().next();
    if (oldest.done !== true) entries.delete(oldest.value);
  }
}
