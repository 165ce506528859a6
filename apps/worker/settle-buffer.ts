import { setTimeout as delay } from 'node:timers/promises';
import type { Database } from '#db/client.ts';
import { faultOf, isTransient } from '#db/errors.ts';
import { settle, type Settlement, type SettleResult } from '#db/settle.ts';
import type { Wakeups } from '#db/wakeups.ts';
import { GroupCommit, type Weighed } from '#runtime/group-commit.ts';
import type { Logger } from '#runtime/logger.ts';
import type { Metrics, SettleOutcome } from '#runtime/metrics.ts';
import type { Outage } from '#runtime/outage.ts';

export interface SettleBufferOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'wake'>;
  readonly metrics: Pick<Metrics, 'recordSettled'>;
  readonly logger: Pick<Logger, 'error'>;
  readonly outage: Outage;
  /** Settlements were written or given up: there is room for more. */
  readonly onSettled: () => void;
}

export interface SettledSubscription {
  readonly id: number;
  readonly name: string;
  readonly topicId: number;
}

interface Pending extends Weighed {
  readonly subscription: SettledSubscription;
  readonly settlements: readonly Settlement[];
  /** On the process's monotonic clock: later than that the lease has run out, and the settle would change nothing. */
  readonly until: number;
}

const callEventsMax = 1000;
const retryMs = { first: 50, max: 2000 };

/**
 * Settles what deliveries came to: those of one subscription that end while a call is under way share the next. While the
 * database is away they are kept and tried again, because to repeat a settle is safe and to forget one is to deliver again.
 */
export class SettleBuffer {
  readonly #options: SettleBufferOptions;
  readonly #group: GroupCommit<Pending>;
  readonly #giveUp = new AbortController();
  #events = 0;
  #lostByFailure = 0;

  constructor(options: SettleBufferOptions) {
    this.#options = options;
    this.#group = new GroupCommit<Pending>({
      eventsMax: callEventsMax,
      bytesMax: Infinity,
      send: (batch) => this.#send(batch, true),
    });
  }

  /** Events whose settle was not answered yet. */
  get size(): number {
    return this.#events;
  }

  /** Events that could not be settled and stay leased. */
  get unsettled(): number {
    return this.#lostByFailure;
  }

  add(subscription: SettledSubscription, settlements: readonly Settlement[], until: number): void {
    const events = settlements.length;
    if (events === 0) return;
    this.#events += events;
    this.#group.add(subscription.id, { subscription, settlements, until, events, bytes: 0 });
  }

  /** Waits until everything is settled, until the deadline at the latest. */
  async drain(deadline: AbortSignal): Promise<void> {
    const unsent = await this.#group.drain(deadline);
    this.#giveUp.abort();
    for (const pending of unsent) this.#forget(pending);
  }

  async #send(batch: readonly Pending[], mayDivide: boolean): Promise<void> {
    for (let failures = 0; ; failures += 1) {
      const alive = this.#dropExpired(batch);
      const began = performance.now();
      try {
        await this.#settle(alive);
        this.#options.outage.worked('settle', began);
        return;
      } catch (error) {
        if (!isTransient(error) || this.#giveUp.signal.aborted) {
          await this.#divide(alive, mayDivide, error);
          return;
        }
        this.#noteOutage(error);
        if (mayDivide && faultOf(error) === 'lock_timeout' && alive.length > 1) {
          // a row that somebody holds stops its own settlements and no others
          await this.#divide(alive, true, error);
          return;
        }
        const waitMs = Math.min(retryMs.max, retryMs.first * 2 ** Math.min(failures, 10));
        await delay(waitMs * (0.5 + Math.random() / 2), undefined, {
          signal: this.#giveUp.signal,
        }).catch(() => undefined);
        batch = alive;
      }
    }
  }

  /** One by one, so that what cannot be settled takes nothing else with it. */
  async #divide(batch: readonly Pending[], mayDivide: boolean, error: unknown): Promise<void> {
    if (mayDivide && batch.length > 1 && !this.#giveUp.signal.aborted) {
      for (const pending of batch) await this.#send([pending], false);
      return;
    }
    if (batch.length > 0)
      this.#options.logger.error({ err: error }, 'deliveries cannot be settled');
    for (const pending of batch) this.#forget(pending);
  }

  async #settle(batch: readonly Pending[]): Promise<void> {
    const subscription = batch[0]?.subscription;
    if (subscription === undefined) return;
    const settlements = batch.flatMap((pending) => pending.settlements);
    const { db, wakeups } = this.#options;
    const results = await settle(db, subscription.topicId, subscription.id, settlements);
    this.#record(subscription, results);
    if (results.includes('released')) wakeups.wake(subscription.topicId, [subscription.id]);
    for (const { events } of batch) this.#events -= events;
    this.#options.onSettled();
  }

  #dropExpired(batch: readonly Pending[]): readonly Pending[] {
    const now = performance.now();
    const isAlive = (pending: Pending): boolean => pending.until > now;
    if (batch.every(isAlive)) return batch;
    for (const pending of batch) if (!isAlive(pending)) this.#forget(pending);
    return batch.filter(isAlive);
  }

  #forget({ events }: Pending): void {
    this.#events -= events;
    this.#lostByFailure += events;
    this.#options.onSettled();
  }

  #noteOutage(error: unknown): void {
    const fault = faultOf(error);
    if (fault === 'unavailable' || fault === 'outcome_unknown') {
      this.#options.outage.failed('settle', error);
    }
  }

  #record(subscription: SettledSubscription, results: readonly SettleResult[]): void {
    for (const [result, all] of Map.groupBy(results, (each) => each)) {
      const outcome: SettleOutcome = result === 'lease_lost' ? 'lost' : result;
      this.#options.metrics.recordSettled({
        subscription: subscription.name,
        outcome,
        events: all.length,
      });
    }
  }
}
