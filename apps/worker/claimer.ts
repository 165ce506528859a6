import { claim, type ClaimedEvent, type ClaimRoom } from '#db/claim.ts';
import type { Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import { LowWaterMarks } from '#db/low-water-marks.ts';
import { idleMark } from '#db/mark.ts';
import type { WorkerSession } from '#db/worker-session.ts';
import type { Logger } from '#runtime/logger.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { recordReceive } from '#runtime/messaging-spans.ts';
import type { Outage } from '#runtime/outage.ts';
import { outsideSpan } from '#runtime/tracing.ts';
import type { DeliveryQueue, Held } from './delivery-queue.ts';

export interface ClaimerOptions {
  readonly db: Database;
  readonly statementTimeoutMs: number;
  readonly leaseMs: number;
  readonly logger: Pick<Logger, 'error'>;
  readonly outage: Outage;
  readonly metrics: Pick<Metrics, 'recordClaim'>;
  /** The life in which this worker may claim now; undefined: it may not. */
  readonly session: () => WorkerSession | undefined;
  /** Bytes that may still be claimed. */
  readonly bytesFree: () => number;
  readonly onClaimed: (queue: DeliveryQueue, held: readonly Held[]) => void;
  /** A claim may have been committed, and nobody knows what it took. */
  readonly onUnknown: (session: WorkerSession) => void;
}

// claims under way, of different topics; the rest of the pool is for settles
const claimsMax = 2;
const queuesPerClaim = 32;
const eventsPerClaim = 2000;
const bytesPerQueue = 4_194_304;
const retryMs = { first: 100, max: 5000 };
/** After something was found and then nothing: a wake-up comes up to 20 ms behind its publish. */
const lookAgainMs = [2, 4, 8] as const;
/** In a claim for more, looks that find nothing would be most of the work. */
const looksQueuesMax = 8;

/**
 * Claims for the queues that have room and may have something due: one call for those of a topic, one at a time per topic,
 * topics and subscriptions in turn.
 */
export class Claimer {
  readonly #options: ClaimerOptions;
  readonly #marks: LowWaterMarks;
  /** By topic, those that came first in front. */
  readonly #hungry = new Map<number, Set<DeliveryQueue>>();
  readonly #underWay = new Map<number, Promise<void>>();
  /** Of topics whose last claim failed: how often in a row, and when it is tried again. */
  readonly #failing = new Map<number, { failures: number; retry: NodeJS.Timeout | undefined }>();
  #isStopped = false;

  constructor(options: ClaimerOptions) {
    this.#options = options;
    this.#marks = new LowWaterMarks({ lookBackMs: options.statementTimeoutMs * 2 });
  }

  /** Something of it may have been due since `mark`, earlier than its next claim would look. */
  lower(subscriptionId: number, mark: string): void {
    this.#marks.lower(subscriptionId, mark);
  }

  /** A queue is due, or has room again. */
  want(queue: DeliveryQueue): void {
    if (!queue.isDue || queue.isClaiming || this.#isStopped) return;
    const queues = this.#hungry.get(queue.topicId) ?? new Set();
    this.#hungry.set(queue.topicId, queues.add(queue));
  }

  /** Begins the claims that can be begun now. */
  run(): void {
    if (this.#isStopped) return;
    for (const [topicId, queues] of this.#hungry) {
      if (this.#underWay.size >= claimsMax || this.#options.bytesFree() <= 0) return;
      const isWaiting = this.#failing.get(topicId)?.retry !== undefined;
      if (isWaiting || this.#underWay.has(topicId)) continue;
      const session = this.#options.session();
      if (session === undefined) return;
      const now = performance.now();
      const chosen = this.#choose(queues, now);
      // behind the others, whether something is left of it or not
      this.#hungry.delete(topicId);
      if (queues.size > 0) this.#hungry.set(topicId, queues);
      if (chosen.length > 0) this.#begin(topicId, chosen, session);
    }
  }

  /** Begins no more claims, and waits for those under way. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    for (const { retry } of this.#failing.values()) clearTimeout(retry);
    this.#hungry.clear();
    await Promise.all(this.#underWay.values());
  }

  /** Queues without room are left out; they come back when they have some. */
  #choose(queues: Set<DeliveryQueue>, now: number): DeliveryQueue[] {
    const chosen: DeliveryQueue[] = [];
    for (const queue of queues) {
      if (chosen.length === queuesPerClaim) break;
      queues.delete(queue);
      if (queue.room(now) > 0) chosen.push(queue);
    }
    return chosen;
  }

  #begin(topicId: number, queues: readonly DeliveryQueue[], session: WorkerSession): void {
    const claiming = this.#claim(topicId, queues, session).finally(() => {
      this.#underWay.delete(topicId);
      for (const queue of queues) {
        queue.isClaiming = false;
        this.want(queue);
      }
      this.run();
    });
    this.#underWay.set(topicId, claiming);
  }

  async #claim(
    topicId: number,
    queues: readonly DeliveryQueue[],
    session: WorkerSession,
  ): Promise<void> {
    const { db, leaseMs, outage, metrics, onClaimed } = this.#options;
    const sentAt = performance.now();
    for (const queue of queues) {
      queue.isClaiming = true;
      // what becomes due from here on says so again
      queue.isDue = false;
    }
    const rooms = queues.map((queue) => this.#roomOf(queue, queues.length, sentAt));
    const record = (found: number | undefined): void =>
      metrics.recordClaim({
        events: found,
        durationSeconds: (performance.now() - sentAt) / 1000,
      });
    let events: ClaimedEvent[];
    try {
      const options = { leaseMs, leasedBy: session.instance };
      // not of the delivery whose end made room for it
      events = await outsideSpan(() => claim(db, topicId, rooms, options));
      record(events.length);
    } catch (error) {
      record(undefined);
      this.#noteFailure(topicId, error, session);
      for (const queue of queues) {
        queue.isDue = true;
        // what a wake-up had asked for is forgotten with the rest: from the head again
        this.#marks.forget(queue.id);
      }
      return;
    }
    this.#failing.delete(topicId);
    outage.worked('claim', sentAt);
    const found = Map.groupBy(events, (event) => event.subscription_id);
    for (const queue of queues) {
      const own = found.get(queue.id);
      if (own === undefined) continue;
      this.#marks.saw(queue.id, own, performance.now());
      // there may be more, and what was published meanwhile
      queue.isDue = true;
      queue.looksLeft = lookAgainMs.length;
      const trace = recordReceive({
        subscription: queue.name,
        events: own,
        startedAt: sentAt,
        parent: 'root',
      });
      // one for all of them: what is given back goes by claim
      const claimed = { session, sentAt, leaseMs, trace };
      onClaimed(
        queue,
        own.map((event): Held => ({ event, claim: claimed })),
      );
    }
    const empty = queues.filter((queue) => !found.has(queue.id));
    if (queues.length <= looksQueuesMax) this.#lookAgain(empty);
    await this.#markIdle(empty, sentAt);
  }

  #lookAgain(queues: readonly DeliveryQueue[]): void {
    for (const queue of queues) {
      if (queue.looksLeft === 0) continue;
      const waitMs = lookAgainMs[lookAgainMs.length - queue.looksLeft];
      queue.looksLeft -= 1;
      setTimeout(() => {
        queue.isDue = true;
        this.want(queue);
        this.run();
      }, waitMs);
    }
  }

  #roomOf(queue: DeliveryQueue, queues: number, now: number): ClaimRoom {
    const { id } = queue;
    const bytesFree = Math.max(1, Math.floor(this.#options.bytesFree() / queues));
    return {
      subscription_id: id,
      events: Math.min(queue.room(now), Math.ceil(eventsPerClaim / queues)),
      bytes: Math.min(bytesPerQueue, bytesFree),
      mark: this.#marks.next(id, now),
    };
  }

  /** So that the next claim of a subscription that is empty does not start at the head. */
  async #markIdle(queues: readonly DeliveryQueue[], now: number): Promise<void> {
    const { db, statementTimeoutMs } = this.#options;
    for (const { id } of queues) {
      if (!this.#marks.isOld(id, now)) continue;
      const mark = await idleMark(db, id, statementTimeoutMs * 2).catch(() => undefined);
      if (mark !== undefined) this.#marks.set(id, mark, performance.now());
    }
  }

  #noteFailure(topicId: number, error: unknown, session: WorkerSession): void {
    const { outage, logger, onUnknown } = this.#options;
    const failing = this.#failing.get(topicId) ?? { failures: 0, retry: undefined };
    this.#failing.set(topicId, failing);
    const fault = faultOf(error);
    if (fault === 'worker_gone') session.noteGone();
    else if (fault === 'unavailable' || fault === 'outcome_unknown') outage.failed('claim', error);
    else if (failing.failures === 0) {
      logger.error(
        { topic_id: topicId, err: error },
        'claims fail, and are tried again with backoff',
      );
    }
    if (fault === 'outcome_unknown') onUnknown(session);
    const longestMs = Math.min(retryMs.max, retryMs.first * 2 ** Math.min(failing.failures, 20));
    failing.failures += 1;
    if (this.#isStopped) return;
    const retry = (): void => {
      failing.retry = undefined;
      this.run();
    };
    failing.retry = setTimeout(retry, longestMs * (0.5 + Math.random() / 2));
  }
}
