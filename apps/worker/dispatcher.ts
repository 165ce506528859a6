import type { Settlement } from '#db/settle.ts';
import type { WorkerSession } from '#db/worker-session.ts';
import type { Metrics } from '#runtime/metrics.ts';
import type { Outage } from '#runtime/outage.ts';
import {
  attemptDelivery,
  leaseOf,
  type AttemptOptions,
  type DeliverySettlement,
} from './attempt.ts';
import { Claimer } from './claimer.ts';
import { type Claim, DeliveryQueue, type Held } from './delivery-queue.ts';
import { withProcessSpan } from './process-span.ts';
import type { PushDirectory, PushSubscription } from './push-directory.ts';
import type { Registration } from './registration.ts';
import type { SettleBuffer } from './settle-buffer.ts';

export interface DispatcherOptions extends Omit<AttemptOptions, 'signal'> {
  readonly directory: Pick<PushDirectory, 'get'>;
  readonly settles: Pick<SettleBuffer, 'add' | 'size' | 'sizeOf'>;
  readonly metrics: AttemptOptions['metrics'] & Pick<Metrics, 'setPushState' | 'recordClaim'>;
  readonly outage: Outage;
  readonly statementTimeoutMs: number;
  /** In whose current life this worker may claim and begin deliveries. */
  readonly registration: Pick<Registration, 'current' | 'count' | 'retire'>;
  /** Deliveries in flight. */
  readonly slots: number;
  /** Of events that are held, in flight or not. */
  readonly bytesMax: number;
  /** What has not begun so long after its claim, and so long before its lease runs out, is given back (240,000). */
  readonly beginWithinMs?: number;
}

// A backstop: a worker's leases end with its session.
const leaseMs = 60_000 + 300_000;
const idleMs = 60_000;
/** A subscription that is not active is looked up again after so long: the word of its change may be lost. */
const lookUpAgainMs = 30_000;
/** Events that are delivered and not settled: of one subscription, whose rows somebody may hold, and of all. */
const unsettledMax = { each: 1000, all: 50_000 };
/** What could not be sent for a reason of ours is tried again after so long, or when the subscription changes. */
const notSentAgainMs = 5000;
/** What did not get its turn here is left to the other workers for so long. */
const givenBackRestMs = 5000;
/** A receiver that wants to be left alone for longer than this gets what was claimed for it taken back. */
const holdInHandMs = 1000;

/**
 * Hands out what was claimed: subscriptions in turn, one event each, as long as there is a slot. What ends makes room for the
 * next claim.
 */
export class Dispatcher {
  readonly #options: DispatcherOptions;
  readonly #claimer: Claimer;
  readonly #queues = new Map<number, DeliveryQueue>();
  /** Those that can begin a delivery, whose turn comes first in front. */
  readonly #ready = new Set<DeliveryQueue>();
  /** Those that could as well, and are passed by while slots are scarce, because they have some in flight already. */
  readonly #passedBy = new Set<DeliveryQueue>();
  readonly #stopping = new AbortController();
  readonly #cut = new AbortController();
  readonly #whenEmpty = Promise.withResolvers<void>();
  #inFlight = 0;
  #bytes = 0;
  #isScheduled = false;

  constructor(options: DispatcherOptions) {
    this.#options = options;
    const { db, statementTimeoutMs, logger, outage, metrics, registration } = options;
    this.#claimer = new Claimer({
      db,
      statementTimeoutMs,
      leaseMs,
      logger,
      outage,
      metrics,
      session: () => registration.current,
      bytesFree: () => options.bytesMax - this.#bytes,
      onClaimed: (queue, held) => this.#onClaimed(queue, held),
      onUnknown: (session) => this.#retire(session),
    });
  }

  /** Something of a subscription may be there to claim; `mark`: it may have been due since then. */
  wake(subscriptionId: number, mark?: string): void {
    if (this.#stopping.signal.aborted) return;
    if (mark !== undefined) this.#claimer.lower(subscriptionId, mark);
    const queue = this.#queues.get(subscriptionId);
    if (queue === undefined) void this.#meet(subscriptionId);
    else this.#markDue(queue);
  }

  /** A subscription was changed: what is held of it is given back unless it is still active, and its endpoint gets a new chance. */
  async noteChange(subscriptionId: number): Promise<void> {
    const subscription = await this.#lookUp(subscriptionId);
    const queue = this.#queues.get(subscriptionId);
    if (queue === undefined || subscription === 'unknown') return;
    queue.isActive = subscription?.isActive ?? false;
    queue.lookedUpAt = performance.now();
    queue.breaker.reset();
    if (!queue.isActive) this.#giveBack(queue);
    this.#markDue(queue);
  }

  /** The worker may go on, or its leases were taken over: what it had not begun of them is not its own any more. */
  noteSession(session: WorkerSession): void {
    if (session.isGone) this.#giveBackOf(session);
    this.schedule();
  }

  /** Begins nothing more, and gives back what has not begun. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#claimer.stop();
    for (const queue of this.#queues.values()) {
      clearTimeout(queue.timer);
      this.#giveBack(queue);
    }
    if (this.#inFlight === 0) this.#whenEmpty.resolve();
  }

  /** Waits for the deliveries in flight; at the deadline those that are left count as without an answer. */
  async drain(deadline: AbortSignal): Promise<void> {
    const cut = (): void => this.#cut.abort();
    if (deadline.aborted) cut();
    deadline.addEventListener('abort', cut, { once: true });
    await this.#whenEmpty.promise;
    deadline.removeEventListener('abort', cut);
  }

  /** So many events of a claim are settled. */
  noteSettled(subscriptionId: number, claim: Claim, events: number): void {
    this.#options.registration.count(claim.session, -events);
    const queue = this.#queues.get(subscriptionId);
    if (queue !== undefined && queue.waiting > 0) this.#ready.add(queue);
    this.schedule();
  }

  /** Begins what can be begun, once for all that changes in this turn of the event loop. */
  schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(() => {
      this.#isScheduled = false;
      this.#beginAll();
      this.#claimer.run();
    });
  }

  /** Once a second: says what it has in hand, and gives back what its turn does not come for. */
  tick(): void {
    let buffered = 0;
    let breakersOpen = 0;
    const now = performance.now();
    for (const queue of this.#queues.values()) {
      buffered += queue.waiting;
      breakersOpen += queue.breaker.isOpen ? 1 : 0;
      this.#tend(queue, now);
    }
    this.#options.metrics.setPushState({ inFlight: this.#inFlight, buffered, breakersOpen });
    this.schedule();
  }

  #tend(queue: DeliveryQueue, now: number): void {
    const oldestAt = now - (this.#options.beginWithinMs ?? 240_000);
    if (queue.oldestAt < oldestAt) {
      queue.restsUntil = now + givenBackRestMs;
      this.#giveBack(queue, ({ claim }) => claim.sentAt < oldestAt);
    }
    this.#claimer.want(queue);
    if (!queue.isActive && now - queue.lookedUpAt > lookUpAgainMs) void this.noteChange(queue.id);
    const isForgotten = queue.isIdle && !queue.breaker.isOpen && now - queue.usedAt > idleMs;
    if (isForgotten && queue.timer === undefined) this.#queues.delete(queue.id);
  }

  async #meet(subscriptionId: number): Promise<void> {
    const subscription = await this.#lookUp(subscriptionId);
    if (subscription === 'unknown' || subscription?.isActive !== true) return;
    if (this.#stopping.signal.aborted) return;
    const queue =
      this.#queues.get(subscriptionId) ?? new DeliveryQueue(subscription, this.#options.slots);
    this.#queues.set(subscriptionId, queue);
    this.#markDue(queue);
  }

  #markDue(queue: DeliveryQueue): void {
    queue.isDue = true;
    this.#claimer.want(queue);
    this.schedule();
  }

  #onClaimed(queue: DeliveryQueue, held: readonly Held[]): void {
    queue.add(held);
    for (const each of held) this.#bytes += bytesOf(each);
    const session = held[0]?.claim.session;
    if (session !== undefined) this.#options.registration.count(session, held.length);
    if (this.#stopping.signal.aborted || session?.isGone === true) this.#giveBack(queue);
    else this.#ready.add(queue);
    this.schedule();
  }

  /** A subscription that hangs may fill most slots, and so may several together; the last quarter is for those that have none. */
  #isScarce(): boolean {
    return this.#inFlight >= Math.ceil((this.#options.slots * 3) / 4);
  }

  #beginAll(): void {
    const { registration, slots, settles } = this.#options;
    const { current } = registration;
    if (current === undefined || this.#stopping.signal.aborted) return;
    if (!this.#isScarce()) {
      for (const queue of this.#passedBy) this.#ready.add(queue);
      this.#passedBy.clear();
    }
    const now = performance.now();
    for (const queue of this.#ready) {
      if (this.#inFlight >= slots || settles.size >= unsettledMax.all) return;
      // back at the end for its next turn, if it can begin another
      this.#ready.delete(queue);
      if (queue.inFlight > 0 && this.#isScarce()) this.#passedBy.add(queue);
      else if (this.#begin(queue, current, now)) {
        this.#ready.add(queue);
        this.#claimer.want(queue);
      }
    }
  }

  /** Whether its turn came to something; what is in the way is over when a delivery or a settle ends, or by the breaker's timer. */
  #begin(queue: DeliveryQueue, current: WorkerSession, now: number): boolean {
    if (this.#options.settles.sizeOf(queue.id) >= unsettledMax.each) return false;
    const held = queue.canBegin(now) ? queue.take() : undefined;
    if (held === undefined) return false;
    if (held.claim.session === current) {
      queue.begun.count(now);
      void this.#deliver(queue, held);
    } else this.#release(queue, held.claim, [held]);
    return true;
  }

  async #deliver(queue: DeliveryQueue, held: Held): Promise<void> {
    queue.inFlight += 1;
    this.#inFlight += 1;
    await withProcessSpan(queue.name, held, async () => {
      const settlement = await this.#attempt(queue, held).catch(
        (error: unknown): DeliverySettlement => {
          this.#options.logger.error({ err: error, subscription: queue.name }, 'a delivery failed');
          return {
            lease: leaseOf(held, queue.topicId),
            outcome: 'nacked',
            error: 'the worker failed',
          };
        },
      );
      // inside of it, so that the settle knows what to link to
      this.#settle(queue, held.claim, [settlement]);
    });
    queue.inFlight -= 1;
    queue.usedAt = performance.now();
    this.#inFlight -= 1;
    this.#bytes -= bytesOf(held);
    this.#noteRoom(queue);
    if (this.#inFlight === 0 && this.#stopping.signal.aborted) this.#whenEmpty.resolve();
  }

  async #attempt(queue: DeliveryQueue, held: Held): Promise<DeliverySettlement> {
    const subscription = await this.#lookUp(queue.id);
    if (subscription === 'unknown' || subscription?.isActive !== true) {
      // claimed again at once it would come here again
      if (subscription === 'unknown') queue.breaker.hold(performance.now(), notSentAgainMs);
      else queue.isActive = false;
      queue.lookedUpAt = performance.now();
      return { lease: leaseOf(held, queue.topicId), outcome: 'released' };
    }
    const signal = this.#cut.signal;
    return attemptDelivery(queue, held, subscription, { ...this.#options, signal });
  }

  /** 'unknown': the database could not say. */
  async #lookUp(id: number): Promise<PushSubscription | undefined | 'unknown'> {
    try {
      return await this.#options.directory.get(id);
    } catch (error) {
      this.#options.logger.error({ err: error, subscription_id: id }, 'cannot look up');
      return 'unknown';
    }
  }

  /** A delivery has ended, or the breaker lets something through again. */
  #noteRoom(queue: DeliveryQueue): void {
    const waitMs = queue.breaker.waitMs(performance.now());
    if (waitMs > holdInHandMs || (waitMs > 0 && queue.breaker.isOpen)) this.#giveBack(queue);
    if (waitMs > 0) this.#awaitBreaker(queue, waitMs);
    else if (queue.waiting > 0) this.#ready.add(queue);
    this.#claimer.want(queue);
    this.schedule();
  }

  #awaitBreaker(queue: DeliveryQueue, waitMs: number): void {
    clearTimeout(queue.timer);
    if (this.#stopping.signal.aborted) return;
    queue.timer = setTimeout(() => {
      queue.timer = undefined;
      // whatever a wake-up said meanwhile, something may be there
      queue.isDue = true;
      this.#noteRoom(queue);
    }, waitMs);
  }

  /** A claim may have leased something in this life that nobody knows of: it ends, and what it holds is let go. */
  #retire(session: WorkerSession): void {
    this.#options.registration.retire(session);
    this.#giveBackOf(session);
  }

  #giveBackOf(session: WorkerSession): void {
    for (const queue of this.#queues.values()) {
      this.#giveBack(queue, ({ claim }) => claim.session === session);
    }
  }

  #giveBack(queue: DeliveryQueue, isWanted: (held: Held) => boolean = () => true): void {
    for (const [claim, held] of Map.groupBy(queue.takeWhere(isWanted), (each) => each.claim)) {
      this.#release(queue, claim, held);
    }
    // it has room again
    this.#claimer.want(queue);
  }

  #release(queue: DeliveryQueue, claim: Claim, held: readonly Held[]): void {
    const settlements = held.map((each): Settlement => {
      return { lease: leaseOf(each, queue.topicId), outcome: 'released' };
    });
    for (const each of held) this.#bytes -= bytesOf(each);
    this.#settle(queue, claim, settlements);
  }

  #settle(queue: DeliveryQueue, claim: Claim, settlements: readonly DeliverySettlement[]): void {
    this.#options.settles.add(queue, claim, settlements);
  }
}

/** An estimate of what an event takes while it is held. */
function bytesOf({ event }: Held): number {
  return 1024 + (event.data?.length ?? 0) + (event.extensions?.length ?? 0);
}
