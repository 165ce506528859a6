import pLimit, { type LimitFunction } from 'p-limit';
import type { Database } from '#db/client.ts';
import { faultOf, isTransient } from '#db/errors.ts';
import { settleTimed } from '#db/settle.ts';
import type { Wakeups } from '#db/wakeups.ts';
import { GroupCommit, type Weighed } from '#runtime/group-commit.ts';
import type { Logger } from '#runtime/logger.ts';
import { type BatchPart, partHere, withBatchSpan } from '#runtime/messaging-spans.ts';
import type { Metrics } from '#runtime/metrics.ts';
import type { Outage } from '#runtime/outage.ts';
import type { DeliverySettlement } from './attempt.ts';
import type { Claim } from './delivery-queue.ts';

export interface SettleBufferOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'wake'>;
  readonly metrics: Pick<Metrics, 'recordSettleCall'>;
  readonly logger: Pick<Logger, 'error'>;
  readonly outage: Outage;
  /** Calls under way at a time, of different subscriptions; the rest of the pool is for claims. */
  readonly callsMax: number;
  /** So many events of this claim are settled, or given up: there is room for more. */
  readonly onSettled: (subscriptionId: number, claim: Claim, events: number) => void;
}

export interface SettledSubscription {
  readonly id: number;
  readonly name: string;
  readonly topicId: number;
}

interface Pending extends Weighed, BatchPart {
  readonly subscription: SettledSubscription;
  readonly claim: Claim;
  readonly settlements: readonly DeliverySettlement[];
  /** Tries that failed. */
  failures: number;
}

const callEventsMax = 1000;
const retryMs = { first: 50, max: 2000 };

/**
 * Settles what deliveries came to: those of one subscription that end while a call is under way share the next. What cannot be
 * settled now, because the database is away or somebody holds its row, is tried again later and stops nothing else; to repeat
 * a settle is safe, and to forget one is to deliver again.
 */
export class SettleBuffer {
  readonly #options: SettleBufferOptions;
  readonly #group: GroupCommit<Pending>;
  readonly #limit: LimitFunction;
  /** Those that wait for another try. */
  readonly #retries = new Map<Pending, NodeJS.Timeout>();
  /** Events whose settle was not answered yet, by subscription. */
  readonly #unsettled = new Map<number, number>();
  #isDraining = false;
  #events = 0;
  #lost = 0;

  constructor(options: SettleBufferOptions) {
    this.#options = options;
    this.#limit = pLimit(options.callsMax);
    this.#group = new GroupCommit<Pending>({
      eventsMax: callEventsMax,
      bytesMax: Infinity,
      send: async (batch) => {
        // those that failed before may fail again, and would take the others with them
        await this.#send(batch.filter(({ failures }) => failures === 0));
        await this.#send(batch.filter(({ failures }) => failures > 0));
      },
    });
  }

  /** Events whose settle was not answered yet. */
  get size(): number {
    return this.#events;
  }

  /** The same of one subscription. */
  sizeOf(subscriptionId: number): number {
    return this.#unsettled.get(subscriptionId) ?? 0;
  }

  /** Events that were given up and stay leased. */
  get lost(): number {
    return this.#lost;
  }

  add(
    subscription: SettledSubscription,
    claim: Claim,
    settlements: readonly DeliverySettlement[],
  ): void {
    const events = settlements.length;
    if (events === 0) return;
    this.#count(subscription.id, events);
    const pending = {
      subscription,
      claim,
      settlements,
      events,
      bytes: 0,
      failures: 0,
      ...partHere(),
    };
    this.#group.add(subscription.id, pending);
  }

  /** Waits until everything is settled, until the deadline at the latest. What waits for another try gets it now, and it is the last. */
  async drain(deadline: AbortSignal): Promise<void> {
    this.#isDraining = true;
    for (const [pending, timer] of this.#retries) {
      clearTimeout(timer);
      this.#group.add(pending.subscription.id, pending);
    }
    this.#retries.clear();
    for (const pending of await this.#group.drain(deadline)) this.#giveUp(pending);
  }

  async #send(batch: readonly Pending[]): Promise<void> {
    const began = performance.now();
    const isAlive = (pending: Pending): boolean => began < endOf(pending);
    const alive = batch.filter(isAlive);
    for (const pending of batch) if (!isAlive(pending)) this.#giveUp(pending);
    try {
      await this.#limit(() => this.#settle(alive));
      this.#options.outage.worked('settle', began);
    } catch (error) {
      await this.#noteFailure(alive, error);
    }
  }

  async #settle(batch: readonly Pending[]): Promise<void> {
    const subscription = batch[0]?.subscription;
    if (subscription === undefined) return;
    const settlements = batch.flatMap((pending) => pending.settlements);
    const { db, wakeups, metrics } = this.#options;
    const began = performance.now();
    const of = { operation: 'settle', type: 'settle', destination: subscription.name } as const;
    const settled = await withBatchSpan({ ...of, messages: settlements.length }, batch, () =>
      settleTimed(db, subscription.topicId, subscription.id, settlements),
    );
    const durationSeconds = (performance.now() - began) / 1000;
    metrics.recordSettleCall({
      subscription: subscription.name,
      settlements,
      durationSeconds,
      ...settled,
    });
    if (settled.results.includes('released')) wakeups.wake(subscription.topicId, [subscription.id]);
    for (const pending of batch) this.#end(pending);
  }

  /** A row that somebody holds, and what is at fault itself, must not take the others with it: they go by entry, then alone. */
  async #noteFailure(batch: readonly Pending[], error: unknown): Promise<void> {
    const fault = faultOf(error);
    if (fault === 'unavailable' || fault === 'outcome_unknown') {
      this.#options.outage.failed('settle', error);
    } else {
      const entryOf = ({ settlements }: Pending) => settlements[0]?.lease.entry_id;
      const entries = [...Map.groupBy(batch, entryOf).values()];
      const parts = entries.length > 1 ? entries : batch.map((pending) => [pending]);
      if (parts.length > 1) {
        for (const part of parts) await this.#send(part);
        return;
      }
    }
    const isLast = this.#isDraining || !isTransient(error);
    if (isLast) this.#options.logger.error({ err: error }, 'deliveries cannot be settled');
    for (const pending of batch) {
      if (isLast) this.#giveUp(pending);
      else this.#tryLater(pending);
    }
  }

  #tryLater(pending: Pending): void {
    const longestMs = Math.min(retryMs.max, retryMs.first * 2 ** Math.min(pending.failures, 10));
    pending.failures += 1;
    const retry = (): void => {
      this.#retries.delete(pending);
      this.#group.add(pending.subscription.id, pending);
    };
    const waitMs = longestMs * (0.5 + Math.random() / 2);
    this.#retries.set(pending, setTimeout(retry, waitMs));
  }

  #giveUp(pending: Pending): void {
    this.#lost += pending.events;
    this.#end(pending);
  }

  #end({ subscription, claim, events }: Pending): void {
    this.#count(subscription.id, -events);
    this.#options.onSettled(subscription.id, claim, events);
  }

  #count(subscriptionId: number, events: number): void {
    this.#events += events;
    const unsettled = this.sizeOf(subscriptionId) + events;
    if (unsettled === 0) this.#unsettled.delete(subscriptionId);
    else this.#unsettled.set(subscriptionId, unsettled);
  }
}

/** Later than that the lease has run out, and a settle would change nothing. */
function endOf({ claim }: Pending): number {
  return claim.sentAt + claim.leaseMs;
}
