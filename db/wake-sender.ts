/** What one wake-up says. No subscriptions: any of the topic, there were too many to name. */
export interface Wake {
  readonly topicId: number;
  readonly subscriptionIds: readonly number[] | undefined;
  readonly mark: string | undefined;
  readonly origin?: string;
  /** When the first of what it says was asked for, by the monotonic clock of `origin` in milliseconds. */
  readonly askedAt?: number;
}

export interface WakeSenderOptions {
  readonly coalesceMs: number;
  /** Sends payloads in one statement. What fails is lost: the sweep finds it. */
  readonly send: (payloads: readonly string[]) => Promise<void>;
}

interface Pending {
  /** Undefined: too many to name. */
  ids: Set<number> | undefined;
  mark: string | undefined;
  readonly askedAt: number;
}

// PostgreSQL takes payloads below 8000 bytes; an id has at most ten digits and a comma.
const idsMax = 700;
const payloadsMax = 500;

/**
 * Puts wake-ups together: the first of a topic goes at once, those of the next `coalesceMs` as one after it. One statement
 * is under way at a time, so a slow database holds one connection, and what waits is one small record per topic.
 */
export class WakeSender {
  readonly origin: string = crypto.randomUUID().slice(0, 8);
  readonly #options: WakeSenderOptions;
  readonly #pending = new Map<number, Pending>();
  readonly #sentAt = new Map<number, number>();
  #timer: NodeJS.Timeout | undefined;
  #sending: Promise<void> | undefined;
  #isClosed = false;

  constructor(options: WakeSenderOptions) {
    this.#options = options;
  }

  add(topicId: number, subscriptionIds: readonly number[], mark?: string): void {
    const pending = this.#pending.get(topicId);
    if (pending === undefined) {
      const askedAt = performance.now();
      this.#pending.set(topicId, { ids: toSet(subscriptionIds), mark, askedAt });
      this.#schedule(topicId);
      return;
    }
    pending.mark = earlier(pending.mark, mark);
    for (const id of subscriptionIds) pending.ids?.add(id);
    if (pending.ids !== undefined && pending.ids.size > idsMax) pending.ids = undefined;
  }

  /** Sends what waits and takes nothing more. */
  async close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    await this.#sending;
    while (this.#pending.size > 0) await this.#send([...this.#pending.keys()]);
  }

  #isDue(topicId: number): boolean {
    return this.#dueAt(topicId) <= performance.now();
  }

  #dueAt(topicId: number): number {
    return (this.#sentAt.get(topicId) ?? -Infinity) + this.#options.coalesceMs;
  }

  /** A topic that has just begun to wait is due at once, or later than all that wait already. */
  #schedule(added?: number): void {
    if (this.#isClosed || this.#sending !== undefined) return;
    if (added !== undefined && this.#isDue(added)) {
      clearTimeout(this.#timer);
      this.#sendDue();
      return;
    }
    if (this.#timer !== undefined || this.#pending.size === 0) return;
    let next = Infinity;
    for (const topicId of this.#pending.keys()) next = Math.min(next, this.#dueAt(topicId));
    this.#timer = setTimeout(() => this.#sendDue(), Math.max(0, next - performance.now()));
  }

  #sendDue(): void {
    this.#timer = undefined;
    for (const topicId of this.#sentAt.keys()) {
      if (this.#isDue(topicId)) this.#sentAt.delete(topicId);
    }
    const topicIds = [...this.#pending.keys()].filter((id) => !this.#sentAt.has(id));
    this.#sending = this.#send(topicIds).finally(() => {
      this.#sending = undefined;
      this.#schedule();
    });
  }

  async #send(topicIds: readonly number[]): Promise<void> {
    const payloads: string[] = [];
    const now = performance.now();
    for (const topicId of topicIds.slice(0, payloadsMax)) {
      const pending = this.#pending.get(topicId);
      if (pending === undefined) continue;
      this.#pending.delete(topicId);
      this.#sentAt.set(topicId, now);
      payloads.push(encodeWake(this.origin, topicId, pending));
    }
    if (payloads.length > 0) await this.#options.send(payloads).catch(() => undefined);
  }
}

function encodeWake(origin: string, topicId: number, { ids, mark, askedAt }: Pending): string {
  const subscriptions = ids && [...ids];
  return JSON.stringify({
    origin,
    topic: topicId,
    subscriptions,
    mark,
    asked_ms: Math.round(askedAt * 10) / 10,
  });
}

/** Reads a payload; undefined where it is none of ours, such as one of another release. */
export function decodeWake(payload: string): Wake | undefined {
  let value: unknown;
  try {
    value = JSON.parse(payload);
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null) return undefined;
  const { origin, topic, subscriptions, mark, asked_ms } = value as Record<string, unknown>;
  if (typeof topic !== 'number') return undefined;
  return {
    topicId: topic,
    subscriptionIds: Array.isArray(subscriptions)
      ? subscriptions.filter((id) => typeof id === 'number')
      : undefined,
    mark: typeof mark === 'string' ? mark : undefined,
    ...(typeof origin === 'string' ? { origin } : {}),
    ...(typeof asked_ms === 'number' ? { askedAt: asked_ms } : {}),
  };
}

function toSet(ids: readonly number[]): Set<number> | undefined {
  return ids.length > idsMax ? undefined : new Set(ids);
}

/** The earlier of two marks (RFC 3339 in UTC, or '-infinity'); one that is absent asks for nothing. */
export function earlier(a: string | undefined, b: string | undefined): string | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  if (a === '-infinity' || b === '-infinity') return '-infinity';
  // Without the Z, fractions of different lengths compare as text.
  return a.replace(/Z$/, '') <= b.replace(/Z$/, '') ? a : b;
}
