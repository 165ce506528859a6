import { claim, type ClaimedEvent } from '#db/claim.ts';
import type { Database } from '#db/client.ts';
import { idleMark } from '#db/mark.ts';
import type { Wakeups } from '#db/wakeups.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { exemplarTrace } from '#runtime/metrics/exemplar.ts';
import type { LowWaterMarks } from '#db/low-water-marks.ts';
import type { Settler, SubscriptionRef } from './settler.ts';

/** One receive request that has not been answered. Answering it removes it from its group. */
export interface Poll {
  readonly maxMessages: number;
  /** Goes on to wait when nothing was found. */
  isPatient: boolean;
  /** The claim that is under way, or has just ended, was made for it too. */
  isLookedFor: boolean;
  answer(events: ClaimedEvent[]): void;
  fail(error: unknown): void;
}

export interface PollGroupOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'wake' | 'onWake' | 'listening'>;
  readonly settler: Pick<Settler, 'release'>;
  readonly metrics: Pick<Metrics, 'recordDelivered' | 'recordClaim'>;
  readonly marks: LowWaterMarks;
  readonly subscription: SubscriptionRef;
  readonly leaseMs: number;
  readonly bytesMax: number;
  /** Of the mark that is set where nothing was found. */
  readonly marginMs: number;
  readonly slowPollMs: { readonly listening: number; readonly deaf: number };
}

const claimEventsMax = 1000;
/** After a look that found nothing: what is being committed, or held by another claimer, is there a moment later. */
const lookAgainMs = [2, 4, 8] as const;

/** The polls of one subscription with one lease time, and the one claim at a time that is made for all of them. */
export class PollGroup {
  readonly #options: PollGroupOptions;
  /** In the order in which they came. */
  readonly #polls = new Set<Poll>();
  #isLooking = false;
  #isWoken = false;
  #isEnded = false;
  #wakeSleeper: (() => void) | undefined;

  constructor(options: PollGroupOptions) {
    this.#options = options;
  }

  add(poll: Poll): void {
    this.#polls.add(poll);
    this.#wake();
  }

  remove(poll: Poll): void {
    this.#polls.delete(poll);
    if (this.#polls.size === 0) this.#wakeSleeper?.();
  }

  /** The poll has waited long enough; what is being claimed for it may still come. */
  endWait(poll: Poll): void {
    if (this.#isLooking && poll.isLookedFor) poll.isPatient = false;
    else poll.answer([]);
  }

  /** Answers all polls with nothing. */
  end(): void {
    this.#isEnded = true;
    for (const poll of this.#polls) poll.answer([]);
  }

  /** Looks until no poll is left. Subscribed to the wake-up before the first look. */
  async run(onEmpty: () => void): Promise<void> {
    const { wakeups, subscription, marks } = this.#options;
    const unsubscribe = wakeups.onWake(subscription.id, (mark) => {
      if (mark !== undefined) marks.lower(subscription.id, mark);
      this.#wake();
    });
    // the first poll is added by whoever made the group
    await Promise.resolve();
    let fruitless = 0;
    while (this.#polls.size > 0) {
      this.#isWoken = false;
      const hasFound = await this.#look();
      fruitless = hasFound || this.#isWoken ? 0 : fruitless + 1;
      if (fruitless > 0 && this.#polls.size > 0 && (await this.#sleep(fruitless))) fruitless = 0;
    }
    unsubscribe();
    onEmpty();
  }

  /** One claim for all polls; whether it found something. */
  async #look(): Promise<boolean> {
    const { marks, subscription } = this.#options;
    let events: ClaimedEvent[];
    try {
      this.#isLooking = true;
      events = await this.#claim();
      this.#isLooking = false;
    } catch (error) {
      this.#isLooking = false;
      // what a wake-up had asked for is forgotten with the rest: from the head again
      marks.forget(subscription.id);
      for (const poll of this.#polls) poll.fail(error);
      return false;
    }
    const hasMore = events[0]?.more ?? false;
    await this.#deal(events, hasMore);
    return events.length > 0;
  }

  async #claim(): Promise<ClaimedEvent[]> {
    const { db, marks, metrics, subscription, leaseMs, bytesMax } = this.#options;
    let wanted = 0;
    for (const poll of this.#polls) {
      poll.isLookedFor = true;
      wanted += poll.maxMessages;
    }
    const now = performance.now();
    const room = {
      subscription_id: subscription.id,
      events: Math.min(wanted, claimEventsMax),
      bytes: bytesMax,
      mark: marks.next(subscription.id, now),
    };
    const record = (found: number | undefined): void =>
      metrics.recordClaim({ events: found, durationSeconds: (performance.now() - now) / 1000 });
    const claimed = claim(db, subscription.topic_id, [room], { leaseMs });
    const events = await claimed.catch((error: unknown) => {
      record(undefined);
      throw error;
    });
    record(events.length);
    if (events.length > 0) marks.saw(subscription.id, events, performance.now());
    else if (marks.isOld(subscription.id, now)) await this.#markIdle();
    return events;
  }

  async #markIdle(): Promise<void> {
    const { db, marks, subscription, marginMs } = this.#options;
    const mark = await idleMark(db, subscription.id, marginMs);
    if (mark !== undefined) marks.set(subscription.id, mark, performance.now());
  }

  /** First come first served. What nobody takes is given back; those who look once and get nothing are answered. */
  async #deal(events: readonly ClaimedEvent[], hasMore: boolean): Promise<void> {
    const { settler, subscription, wakeups } = this.#options;
    this.#record(events);
    let from = 0;
    for (const poll of this.#polls) {
      if (from >= events.length) break;
      const share = events.slice(from, from + poll.maxMessages);
      from += share.length;
      poll.answer(share);
    }
    if (!hasMore) {
      for (const poll of this.#polls) if (poll.isLookedFor && !poll.isPatient) poll.answer([]);
    }
    if (from < events.length) await settler.release(subscription, events.slice(from));
    if (hasMore && this.#polls.size === 0) wakeups.wake(subscription.topic_id, [subscription.id]);
  }

  #record(events: readonly ClaimedEvent[]): void {
    const { metrics, leaseMs, subscription } = this.#options;
    let from = 0;
    for (let i = 1; i <= events.length; i += 1) {
      const first = events[from];
      if (first === undefined || events[i]?.entry_id === first.entry_id) continue;
      // on the database's clock alone: the lease began when it was claimed
      const claimedAt = Date.parse(first.lease_expires_at) - leaseMs;
      metrics.recordDelivered({
        subscription: subscription.name,
        events: i - from,
        redelivered: first.attempt > 1 ? i - from : 0,
        waitSeconds: (claimedAt - Date.parse(first.due_at)) / 1000,
        traceId: exemplarTrace(first.traceparent),
      });
      from = i;
    }
  }

  #wake(): void {
    this.#isWoken = true;
    this.#wakeSleeper?.();
  }

  /** Waits a little after the first fruitless looks, then for a wake-up; whether one came. */
  async #sleep(fruitless: number): Promise<boolean> {
    if (this.#isEnded) return false;
    const { slowPollMs, wakeups } = this.#options;
    const slow = wakeups.listening ? slowPollMs.listening : slowPollMs.deaf;
    const waitMs = lookAgainMs[fruitless - 1] ?? slow * (0.75 + Math.random() / 2);
    await new Promise<void>((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        this.#wakeSleeper = undefined;
        resolve();
      };
      const timer = setTimeout(end, waitMs);
      this.#wakeSleeper = end;
    });
    return this.#isWoken;
  }
}
