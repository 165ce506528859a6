/**
 * A history of what clients did and heard, in the manner of Jepsen: each operation is begun, and ends as `ok` (answered
 * with success), `fail` (certain that nothing happened) or `unknown`. Times are those of one monotonic clock, ours. What the
 * history says about the broker's promises is worked out by ledger-check.ts.
 */
export type Outcome = 'ok' | 'fail' | 'unknown';

export interface Operation {
  /** When it was sent. */
  readonly at: number;
  /** When its outcome was known; Infinity while it is not. */
  doneAt: number;
  /** `unknown` until it is answered. */
  outcome: Outcome;
  /** Of the problem, or what became of the connection. */
  code: string | undefined;
}

/** One request that publishes the events with these tags: the tag is in the event's data, and names it for good. */
export interface PublishOperation extends Operation {
  readonly tags: readonly string[];
  readonly key: string | undefined;
  /** In the order of the tags, once it is ok. */
  results: readonly { readonly id: string; readonly duplicate: boolean }[];
}

export interface ReceiveOperation extends Operation {
  readonly subscription: string;
  readonly leaseMs: number;
}

/** One event handed out once. */
export interface Delivery {
  readonly subscription: string;
  readonly eventId: string;
  readonly tag: string;
  readonly leaseId: string;
  readonly attempt: number;
  readonly receive: ReceiveOperation;
}

export interface SettleOperation extends Operation {
  readonly verb: 'ack' | 'nack';
  readonly subscription: string;
  readonly leaseIds: readonly string[];
  /** The leases that were answered as settled, once it is ok. */
  succeeded: ReadonlySet<string>;
}

/**
 * What an endpoint did with a push. `accepted`: 2xx; `refused`: any other answer. `unknown`: it was cut off, or is not answered
 * yet; the worker may have seen an answer all the same, or none of what was `accepted`.
 */
export type PushOutcome = 'accepted' | 'refused' | 'unknown';

/** One event that was sent to an endpoint once. */
export interface Push {
  readonly subscription: string;
  readonly eventId: string;
  readonly tag: string;
  readonly attempt: number;
  readonly at: number;
  outcome: PushOutcome;
}

/** How one lease of one event ended, as the broker's own table of attempts has it. */
export interface LeaseEnd {
  readonly subscription: string;
  readonly eventId: string;
  readonly attempt: number;
  readonly outcome: 'acked' | 'nacked' | 'released' | 'deferred' | 'lease_expired' | 'dead';
  readonly error: string | null;
}

export class Ledger {
  readonly publishes: PublishOperation[] = [];
  readonly receives: ReceiveOperation[] = [];
  readonly settles: SettleOperation[] = [];
  readonly deliveries: Delivery[] = [];
  readonly pushes: Push[] = [];
  /** Answers that no caller should ever get: `internal_error` and what is no problem document. */
  readonly defects: string[] = [];
  /** When processes were killed or connections cut: what was claimed then may have been for nobody. */
  readonly disruptions: number[] = [];
  readonly #byEvent = new Map<string, Delivery[]>();
  readonly #pushed = new Map<string, number>();
  #accepted = 0;
  #sequence = 0;

  /** Events that were answered with 202, duplicates not counted. */
  get accepted(): number {
    return this.#accepted;
  }

  /** A name that no event of this ledger has yet. */
  nextTag(): string {
    this.#sequence += 1;
    return `t${this.#sequence}`;
  }

  /** Something is about to be killed, cut or stopped, or goes on again. */
  disrupt(): void {
    this.disruptions.push(performance.now());
  }

  beginPublish(tags: readonly string[], key?: string): PublishOperation {
    const operation: PublishOperation = { ...begin(), tags, key, results: [] };
    this.publishes.push(operation);
    return operation;
  }

  endPublish(operation: PublishOperation, results: PublishOperation['results']): void {
    end(operation, 'ok');
    operation.results = results;
    this.#accepted += results.filter((result) => !result.duplicate).length;
  }

  beginReceive(subscription: string, leaseMs: number): ReceiveOperation {
    const operation: ReceiveOperation = { ...begin(), subscription, leaseMs };
    this.receives.push(operation);
    return operation;
  }

  endReceive(
    receive: ReceiveOperation,
    messages: readonly Pick<Delivery, 'eventId' | 'tag' | 'leaseId' | 'attempt'>[],
  ): Delivery[] {
    end(receive, 'ok');
    const deliveries = messages.map((message): Delivery => {
      return { ...message, subscription: receive.subscription, receive };
    });
    for (const delivery of deliveries) {
      this.deliveries.push(delivery);
      const name = eventName(delivery);
      const known = this.#byEvent.get(name);
      if (known === undefined) this.#byEvent.set(name, [delivery]);
      else known.push(delivery);
    }
    return deliveries;
  }

  beginSettle(
    verb: SettleOperation['verb'],
    subscription: string,
    leaseIds: readonly string[],
  ): SettleOperation {
    const operation: SettleOperation = {
      ...begin(),
      verb,
      subscription,
      leaseIds,
      succeeded: new Set(),
    };
    this.settles.push(operation);
    return operation;
  }

  endSettle(operation: SettleOperation, succeeded: readonly string[]): void {
    end(operation, 'ok');
    operation.succeeded = new Set(succeeded);
  }

  /** An endpoint has read a push; `unknown` until `endPush`. */
  beginPush(push: Omit<Push, 'at' | 'outcome'>): Push {
    const begun: Push = { ...push, at: performance.now(), outcome: 'unknown' };
    this.pushes.push(begun);
    return begun;
  }

  endPush(push: Push, outcome: PushOutcome): void {
    push.outcome = outcome;
    if (outcome !== 'accepted') return;
    this.#pushed.set(push.subscription, this.acceptedPushes(push.subscription) + 1);
  }

  /** How many pushes of a subscription its endpoint has accepted, repetitions too. */
  acceptedPushes(subscription: string): number {
    return this.#pushed.get(subscription) ?? 0;
  }

  /** Any operation that had no success. */
  endOtherwise(operation: Operation, outcome: 'fail' | 'unknown', code: string): void {
    end(operation, outcome);
    operation.code = code;
  }

  /** All deliveries of one event to one subscription so far, in the order in which they were heard of. */
  deliveriesOf(delivery: Pick<Delivery, 'subscription' | 'eventId'>): readonly Delivery[] {
    return this.#byEvent.get(eventName(delivery)) ?? [];
  }
}

/** Names an event on its way to one subscription. */
export function eventName({
  subscription,
  eventId,
}: Pick<Delivery, 'subscription' | 'eventId'>): string {
  return `${subscription} ${eventId}`;
}

function begin(): Operation {
  return { at: performance.now(), doneAt: Infinity, outcome: 'unknown', code: undefined };
}

function end(operation: Operation, outcome: Outcome): void {
  operation.doneAt = performance.now();
  operation.outcome = outcome;
}
