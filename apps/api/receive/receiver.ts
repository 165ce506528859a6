import type { ClaimedEvent } from '#db/claim.ts';
import type { Database } from '#db/client.ts';
import type { Wakeups } from '#db/wakeups.ts';
import type { Metrics } from '#runtime/metrics.ts';
import { LowWaterMarks } from '#db/low-water-marks.ts';
import { outsideSpan } from '#runtime/tracing.ts';
import { PollGroup, type Poll, type PollGroupOptions } from './poll-group.ts';
import { Problem } from '../problems.ts';
import type { Settler, SubscriptionRef } from './settler.ts';

export interface ReceiverOptions {
  readonly db: Database;
  readonly wakeups: Pick<Wakeups, 'wake' | 'onWake' | 'listening'>;
  readonly settler: Pick<Settler, 'release'>;
  readonly metrics: Pick<Metrics, 'recordDelivered' | 'recordClaim' | 'setReceiveWaiting'>;
  readonly limits: {
    /** Polls that are answered later, over all subscriptions. */
    readonly waitingMax: number;
    /** Of one claim, and so of one answer. */
    readonly bytesMax: number;
  };
  readonly statementTimeoutMs: number;
  /** How often is looked without a wake-up: while wake-ups are heard (1000), and while they are not (250). */
  readonly slowPollMs?: { readonly listening: number; readonly deaf: number };
}

export interface ReceiveRequest {
  readonly maxMessages: number;
  /** How long to wait for a first event; 0 looks once. */
  readonly waitMs: number;
  readonly leaseMs: number;
  /** The client has gone. */
  readonly signal?: AbortSignal;
}

export interface Receiver {
  /**
   * Leases events of a subscription as soon as there are some; none when the wait is over. Rejects with what `faultOf`
   * sorts, and with the problem `receive_waiting_full`.
   */
  receive(subscription: SubscriptionRef, request: ReceiveRequest): Promise<ClaimedEvent[]>;
  /** Answers the polls that wait with nothing, and gives back what is claimed for nobody. */
  drain(): Promise<void>;
}

/** Long polls of one subscription with the same lease time share one claim. */
export function createReceiver(options: ReceiverOptions): Receiver {
  return new SharingReceiver(options);
}

class SharingReceiver implements Receiver {
  readonly #options: ReceiverOptions;
  readonly #marks: LowWaterMarks;
  /** By subscription and lease time: those that somebody polls. */
  readonly #groups = new Map<string, { group: PollGroup; finished: Promise<void> }>();
  #waiting = 0;
  #isDraining = false;

  constructor(options: ReceiverOptions) {
    this.#options = options;
    this.#marks = new LowWaterMarks({ lookBackMs: options.statementTimeoutMs * 2 });
  }

  receive(subscription: SubscriptionRef, request: ReceiveRequest): Promise<ClaimedEvent[]> {
    const { signal } = request;
    if (this.#isDraining || signal?.aborted === true) return Promise.resolve([]);
    if (this.#waiting >= this.#options.limits.waitingMax) {
      const detail = `${this.#waiting} receive requests wait in this replica, as many as may.`;
      return Promise.reject(new Problem('receive_waiting_full', detail));
    }
    this.#countWaiting(1);
    return new Promise((resolve, reject) => {
      const group = this.#groupOf(subscription, request.leaseMs);
      const leave = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        group.remove(poll);
        this.#countWaiting(-1);
      };
      const answer = (events: ClaimedEvent[]): void => {
        leave();
        resolve(events);
      };
      const poll: Poll = {
        maxMessages: request.maxMessages,
        isPatient: request.waitMs > 0,
        isLookedFor: false,
        answer,
        fail: (error) => {
          leave();
          reject(error as Error);
        },
      };
      const onAbort = (): void => answer([]);
      const timer =
        request.waitMs > 0 ? setTimeout(() => group.endWait(poll), request.waitMs) : undefined;
      signal?.addEventListener('abort', onAbort, { once: true });
      group.add(poll);
    });
  }

  async drain(): Promise<void> {
    this.#isDraining = true;
    const running = [...this.#groups.values()];
    for (const { group } of running) group.end();
    await Promise.all(running.map(({ finished }) => finished));
  }

  #countWaiting(polls: number): void {
    this.#waiting += polls;
    this.#options.metrics.setReceiveWaiting(this.#waiting);
  }

  #groupOf(subscription: SubscriptionRef, leaseMs: number): PollGroup {
    const key = `${subscription.id} ${leaseMs}`;
    const known = this.#groups.get(key);
    if (known !== undefined) return known.group;
    const group = new PollGroup(this.#groupOptions(subscription, leaseMs));
    // it looks for all that poll meanwhile, and not only for the first
    const finished = outsideSpan(() => group.run(() => this.#groups.delete(key)));
    this.#groups.set(key, { group, finished });
    return group;
  }

  #groupOptions(subscription: SubscriptionRef, leaseMs: number): PollGroupOptions {
    const { db, wakeups, settler, metrics, limits, slowPollMs } = this.#options;
    return {
      db,
      wakeups,
      settler,
      metrics,
      marks: this.#marks,
      subscription,
      leaseMs,
      bytesMax: limits.bytesMax,
      marginMs: this.#options.statementTimeoutMs * 2,
      slowPollMs: slowPollMs ?? { listening: 1000, deaf: 250 },
    };
  }
}
