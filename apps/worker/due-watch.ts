import { clockBefore } from '#db/clock.ts';
import type { Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import { dueSubscriptions } from '#db/reap.ts';
import { earlier, type Wake } from '#db/wake-sender.ts';
import type { Wakeups } from '#db/wakeups.ts';
import type { Logger } from '#runtime/logger.ts';
import { type Loop, startLoop } from '#runtime/loop.ts';
import type { Outage } from '#runtime/outage.ts';

export interface DueWatchOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'onEveryWake' | 'onReconnect' | 'listening'>;
  readonly outage: Outage;
  readonly logger: Pick<Logger, 'error'>;
  readonly onDue: (subscriptionId: number, mark?: string) => void;
  /** Nothing becomes waiting further back than this from its commit: two statement timeouts. */
  readonly lookBackMs: number;
  /** How often is looked without a wake-up: while wake-ups are heard (5000), and while they are not (250). */
  readonly pollMs?: { readonly listening: number; readonly deaf: number };
}

/** A wake-up that names no subscriptions is answered by one probe for each of its topic: not more often than this. */
const topicPauseMs = 100;

/**
 * Says which subscriptions may have something to claim: by wake-ups, and by a slow look of its own, so that delivery goes on
 * also while nobody leads and the leader's sweep is missing.
 */
export class DueWatch {
  readonly #options: DueWatchOptions;
  readonly #loop: Loop;
  readonly #unsubscribe: (() => void)[];
  #since = '-infinity';
  #isFromHead = true;
  #lookedAt = -Infinity;
  /** Topics of which a wake-up could not name the subscriptions, and since when something may have been due there. */
  readonly #wokenTopics = new Map<number, string | undefined>();
  /** When each was looked at, if that was lately. */
  readonly #topicsLookedAt = new Map<number, number>();

  constructor(options: DueWatchOptions) {
    this.#options = options;
    const { wakeups } = options;
    this.#unsubscribe = [
      wakeups.onEveryWake((wake) => this.#onWake(wake)),
      // what happened before was not heard
      wakeups.onReconnect(() => this.#lookSoon()),
    ];
    this.#loop = startLoop({
      name: 'due watch',
      intervalMs: topicPauseMs,
      onTick: async () => this.#tick(),
      onError: (error, { failures }) => this.#noteFailure(error, failures),
    });
  }

  async stop(): Promise<void> {
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    await this.#loop.stop();
  }

  #onWake({ topicId, subscriptionIds, mark }: Wake): void {
    if (subscriptionIds === undefined) {
      this.#wokenTopics.set(topicId, earlier(this.#wokenTopics.get(topicId), mark));
      if (!this.#topicsLookedAt.has(topicId)) this.#loop.wake();
    } else for (const id of subscriptionIds) this.#options.onDue(id, mark);
  }

  #lookSoon(): void {
    this.#isFromHead = true;
    this.#loop.wake();
  }

  async #tick(): Promise<void> {
    const { wakeups, pollMs, outage } = this.#options;
    const began = performance.now();
    const waitMs = wakeups.listening ? (pollMs?.listening ?? 5000) : (pollMs?.deaf ?? 250);
    const isDue = this.#isFromHead || began - this.#lookedAt >= waitMs;
    if (isDue) {
      await this.#look();
      this.#lookedAt = began;
    }
    const topics = await this.#lookAtTopics(began);
    if (isDue || topics > 0) outage.worked('look', began);
  }

  /** From the head at the beginning, and when wake-ups were missed; else what became due since the last look. */
  async #look(): Promise<void> {
    const { db, onDue, lookBackMs } = this.#options;
    const isFromHead = this.#isFromHead;
    this.#isFromHead = false;
    try {
      const next = await clockBefore(db, lookBackMs);
      for (const due of await dueSubscriptions(db, isFromHead ? '-infinity' : this.#since)) {
        onDue(due.subscription_id, isFromHead ? due.due_at : undefined);
      }
      this.#since = next;
    } catch (error) {
      this.#isFromHead ||= isFromHead;
      throw error;
    }
  }

  /** Looks at the topics that were woken as a whole, from the last look on; returns at how many. */
  async #lookAtTopics(now: number): Promise<number> {
    for (const [topicId, lookedAt] of this.#topicsLookedAt) {
      if (now - lookedAt >= topicPauseMs) this.#topicsLookedAt.delete(topicId);
    }
    let looked = 0;
    for (const [topicId, mark] of this.#wokenTopics) {
      if (this.#topicsLookedAt.has(topicId)) continue;
      this.#wokenTopics.delete(topicId);
      this.#topicsLookedAt.set(topicId, now);
      await this.#lookAt(topicId, mark);
      looked += 1;
    }
    return looked;
  }

  async #lookAt(topicId: number, mark: string | undefined): Promise<void> {
    const { db, onDue } = this.#options;
    const since = earlier(this.#since, mark) ?? this.#since;
    try {
      for (const due of await dueSubscriptions(db, since, topicId)) {
        onDue(due.subscription_id, mark === undefined ? undefined : due.due_at);
      }
    } catch (error) {
      this.#wokenTopics.set(topicId, earlier(mark, this.#wokenTopics.get(topicId)));
      throw error;
    }
  }

  #noteFailure(error: unknown, failures: number): void {
    const { outage, logger } = this.#options;
    const fault = faultOf(error);
    if (fault === 'unavailable' || fault === 'outcome_unknown') outage.failed('look', error);
    else if (failures === 1) logger.error({ err: error }, 'a look for what is due failed');
  }
}
