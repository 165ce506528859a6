import type { ClaimedEvent } from '#db/claim.ts';
import type { WorkerSession } from '#db/worker-session.ts';
import type { SpanContext } from '#runtime/tracing.ts';
import { Breaker } from './breaker.ts';
import { Rate } from './rate.ts';
import { Window } from './window.ts';

/** What the events of one claim have in common. */
export interface Claim {
  /** The life of the worker that they are leased by. */
  readonly session: WorkerSession;
  /** When the claim was sent, on the process's monotonic clock. */
  readonly sentAt: number;
  readonly leaseMs: number;
  /** The span of the claim. */
  readonly trace?: SpanContext | undefined;
}

/** An event that this worker has leased. */
export interface Held {
  readonly event: ClaimedEvent;
  readonly claim: Claim;
}

/** Ahead of the deliveries in flight, so much is claimed as was begun in this time. */
const prefetchMs = 250;
const prefetchMax = 1000;

/** One push subscription in this worker: what is leased and waits for a slot, what is in flight, and how its endpoint does. */
export class DeliveryQueue {
  readonly id: number;
  readonly name: string;
  readonly topicId: number;
  readonly breaker = new Breaker();
  readonly window: Window;
  readonly begun = new Rate();
  /** There may be something to claim. */
  isDue = false;
  isClaiming = false;
  /** It may be sent to, as far as this worker has heard; when it was looked up. */
  isActive = true;
  lookedUpAt = performance.now();
  /** Nothing is claimed before. */
  restsUntil = 0;
  /** How many more claims are made soon, although the one before found nothing. */
  looksLeft = 0;
  inFlight = 0;
  usedAt = performance.now();
  /** Runs when the breaker lets something through again. */
  timer: NodeJS.Timeout | undefined;
  #waiting: Held[] = [];
  #first = 0;

  /** `slots`: of the whole worker. */
  constructor(subscription: { id: number; name: string; topicId: number }, slots: number) {
    this.id = subscription.id;
    this.name = subscription.name;
    this.topicId = subscription.topicId;
    this.window = new Window(slots);
  }

  /** When the oldest of those that wait was claimed; Infinity for none. */
  get oldestAt(): number {
    return this.#waiting[this.#first]?.claim.sentAt ?? Infinity;
  }

  get waiting(): number {
    return this.#waiting.length - this.#first;
  }

  get isIdle(): boolean {
    return this.waiting === 0 && this.inFlight === 0 && !this.isDue && !this.isClaiming;
  }

  /** How many may be in flight: one while the endpoint is only probed. */
  get slots(): number {
    return this.breaker.isOpen ? 1 : this.window.size;
  }

  /** A delivery can begin now. */
  canBegin(now: number): boolean {
    return this.waiting > 0 && this.inFlight < this.slots && this.breaker.waitMs(now) === 0;
  }

  /**
   * How many events to claim now: none as long as half of what is wanted is there, because a claim of a few events cuts an
   * entry in two.
   */
  room(now: number): number {
    if (!this.isActive || now < this.restsUntil || this.breaker.waitMs(now) > 0) return 0;
    const held = this.waiting + this.inFlight;
    if (this.breaker.isOpen) return Math.max(0, 1 - held);
    const ahead = Math.min(prefetchMax, Math.ceil((this.begun.perSecond(now) * prefetchMs) / 1000));
    const wanted = this.window.size + Math.max(ahead, this.window.size);
    return held * 2 > wanted ? 0 : wanted - held;
  }

  add(held: readonly Held[]): void {
    for (const each of held) this.#waiting.push(each);
  }

  take(): Held | undefined {
    const held = this.#waiting[this.#first];
    if (held === undefined) return undefined;
    this.#first += 1;
    if (this.#first === this.#waiting.length || this.#first >= 256) {
      this.#waiting = this.#waiting.slice(this.#first);
      this.#first = 0;
    }
    return held;
  }

  /** Takes those out that a question is answered with yes for; the others keep their order. */
  takeWhere(isWanted: (held: Held) => boolean): Held[] {
    const taken: Held[] = [];
    const left: Held[] = [];
    for (const held of this.#waiting.slice(this.#first)) (isWanted(held) ? taken : left).push(held);
    this.#waiting = left;
    this.#first = 0;
    return taken;
  }
}
