import type { ClaimedEvent } from './claim.ts';

export interface LowWaterMarkOptions {
  /** Longer than any statement can run: nothing becomes waiting longer ago than that. */
  readonly lookBackMs: number;
  /** How often a claim starts so much further back (2000, jittered). */
  readonly lookBackEveryMs?: number;
  /** How long the mark of a subscription is kept of which nothing is claimed (60,000). */
  readonly keptMs?: number;
}

interface Mark {
  /** Milliseconds of the database's clock. */
  at: number;
  /** When it was set, when a claim last started further back, and when it was last used: on our own monotonic clock. */
  setAt: number;
  lookBackAt: number;
  usedAt: number;
}

interface Lowered {
  /** Milliseconds of the database's clock. */
  at: number;
  /** When it was asked for last, on our own monotonic clock. */
  askedAt: number;
}

const overlapMs = 1000;

/**
 * Where claims start to look in the queue, by subscription. All times come from the database. Nothing but cost depends on
 * a mark: without one a claim starts at the head, and walks over every dead index entry that a held snapshot keeps.
 */
export class LowWaterMarks {
  readonly #lookBackMs: number;
  readonly #lookBackEveryMs: number;
  readonly #keptMs: number;
  readonly #marks = new Map<number, Mark>();
  /** What a wake-up asked for, until a claim has started there. */
  readonly #lowered = new Map<number, Lowered>();
  #sweptAt = 0;

  constructor(options: LowWaterMarkOptions) {
    this.#lookBackMs = options.lookBackMs;
    this.#lookBackEveryMs = options.lookBackEveryMs ?? 2000;
    this.#keptMs = options.keptMs ?? 60_000;
  }

  /** Subscriptions of which something is remembered. */
  get size(): number {
    return new Set([...this.#marks.keys(), ...this.#lowered.keys()]).size;
  }

  /** Where the next claim starts; undefined: at the head. */
  next(subscriptionId: number, now: number): string | undefined {
    this.#sweep(now);
    const mark = this.#marks.get(subscriptionId);
    const lowered = this.#lowered.get(subscriptionId)?.at;
    this.#lowered.delete(subscriptionId);
    if (mark === undefined || now - mark.usedAt > this.#keptMs || lowered === -Infinity) {
      this.#marks.delete(subscriptionId);
      return undefined;
    }
    mark.usedAt = now;
    let from = mark.at;
    if (now >= mark.lookBackAt) {
      mark.lookBackAt = this.#nextLookBack(now);
      from -= this.#lookBackMs;
    }
    return new Date(Math.min(from, lowered ?? from)).toISOString();
  }

  /** A claim has found something: the last of it is where the next one starts, and a little before. */
  saw(subscriptionId: number, events: readonly ClaimedEvent[], now: number): void {
    let last = -Infinity;
    let previous = '';
    for (const { due_at: dueAt } of events) {
      // events of one entry share it
      if (dueAt === previous) continue;
      previous = dueAt;
      last = Math.max(last, Date.parse(dueAt));
    }
    if (Number.isFinite(last)) this.#set(subscriptionId, last - overlapMs, now);
  }

  /** Whether a claim that found nothing should be followed by `set`: the mark is missing or old. */
  isOld(subscriptionId: number, now: number): boolean {
    const mark = this.#marks.get(subscriptionId);
    return mark === undefined || now - mark.setAt > this.#lookBackMs;
  }

  /** Sets a mark of the database. */
  set(subscriptionId: number, mark: string, now: number): void {
    const at = Date.parse(mark);
    if (Number.isFinite(at)) this.#set(subscriptionId, at, now);
  }

  /** A wake-up says that something may have been due since then. */
  lower(subscriptionId: number, mark: string, now = performance.now()): void {
    this.#sweep(now);
    const at = mark === '-infinity' ? -Infinity : Date.parse(mark);
    if (Number.isNaN(at)) return;
    const before = this.#lowered.get(subscriptionId)?.at ?? Infinity;
    this.#lowered.set(subscriptionId, { at: Math.min(at, before), askedAt: now });
  }

  forget(subscriptionId: number): void {
    this.#marks.delete(subscriptionId);
    this.#lowered.delete(subscriptionId);
  }

  #set(subscriptionId: number, at: number, now: number): void {
    const mark = this.#marks.get(subscriptionId);
    if (mark === undefined) {
      this.#marks.set(subscriptionId, {
        at,
        setAt: now,
        usedAt: now,
        lookBackAt: this.#nextLookBack(now),
      });
      return;
    }
    mark.at = at;
    mark.setAt = now;
    mark.usedAt = now;
  }

  #nextLookBack(now: number): number {
    return now + this.#lookBackEveryMs * (0.75 + Math.random() / 2);
  }

  /** Whatever is dropped here, the next claim of that subscription starts at the head. */
  #sweep(now: number): void {
    if (now - this.#sweptAt <= this.#keptMs) return;
    this.#sweptAt = now;
    for (const [id, { usedAt }] of this.#marks) if (now - usedAt > this.#keptMs) this.forget(id);
    for (const [id, { askedAt }] of this.#lowered) {
      if (now - askedAt > this.#keptMs) this.forget(id);
    }
  }
}
