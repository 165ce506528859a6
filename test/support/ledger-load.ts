import { setTimeout as delay } from 'node:timers/promises';

import { eventName, type Delivery, type Ledger } from './ledger.ts';
import { topicUrl, type LedgerClient } from './ledger-client.ts';

export interface LoadOptions {
  readonly client: LedgerClient;
  /** Of the APIs; a client that gets no success asks the next one. */
  readonly urls: readonly string[];
  readonly topic: string;
  readonly subscriptions: readonly string[];
  /** Those that the broker pushes to; of them only the pace is looked at. */
  readonly pushSubscriptions?: readonly string[];
  /** Requests that are under way at a time (8). */
  readonly publishers?: number;
  /** The same, of each subscription (3). */
  readonly consumers?: number;
  /** Largest array of a publish; half of the requests have a single event (20). */
  readonly batchMax?: number;
  /** Share of the publishes that carry an Idempotency-Key, and are repeated until their outcome is known (0.5). */
  readonly keyedShare?: number;
  /** Whether a keyless publish of unknown outcome is repeated, at the risk of storing it twice (half of them are). */
  readonly repeatsKeyless?: boolean;
  readonly leaseSeconds?: number;
  /** Share of the leases that are overrun on purpose and acked late (0.05). */
  readonly overrunShare?: number;
  /** Share of the leases that are nacked (0.01). */
  readonly nackShare?: number;
  /** Publishing pauses while so many accepted events are not acknowledged by the slowest subscription (3000). */
  readonly aheadMax?: number;
  readonly waitSeconds?: number;
}

/** A lease that is kept beyond its end on purpose. */
interface Overrun {
  readonly delivery: Delivery;
  /** When its ack is sent if the event does not come again first. */
  readonly lateAckAt: number;
}

const defaults = {
  publishers: 8,
  consumers: 3,
  batchMax: 20,
  keyedShare: 0.5,
  repeatsKeyless: true,
  leaseSeconds: 2,
  overrunShare: 0.05,
  nackShare: 0.01,
  aheadMax: 3000,
  waitSeconds: 1,
};

/** Publishers and consumers that go on whatever happens, until they are told to stop. */
export class Load {
  readonly #options: LoadOptions & typeof defaults;
  readonly #ledger: Ledger;
  readonly #publishing = new AbortController();
  readonly #consuming = new AbortController();
  readonly #running: { publishers: Promise<void>[]; consumers: Promise<void>[] } = {
    publishers: [],
    consumers: [],
  };
  readonly #overruns = new Map<string, Overrun[]>();
  readonly #acked = new Map<string, number>();
  #isDraining = false;
  #turn = 0;

  constructor(options: LoadOptions) {
    this.#options = { ...defaults, ...options };
    this.#ledger = options.client.ledger;
  }

  start(): this {
    const { publishers, consumers, subscriptions } = this.#options;
    for (let i = 0; i < publishers; i += 1) this.#running.publishers.push(this.#publish());
    for (const subscription of subscriptions) {
      this.#acked.set(subscription, 0);
      for (let i = 0; i < consumers; i += 1) {
        this.#running.consumers.push(this.#consume(subscription));
      }
    }
    return this;
  }

  /** Ends publishing once every keyed publish has its outcome; nothing is overrun or nacked from now on. */
  async stopPublishing(): Promise<void> {
    this.#publishing.abort();
    await Promise.all(this.#running.publishers);
    this.#isDraining = true;
  }

  /** Ends the consumers; what waits in long polls is answered first. */
  async stopConsuming(): Promise<void> {
    this.#consuming.abort();
    await Promise.all(this.#running.consumers);
  }

  async stop(): Promise<void> {
    await this.stopPublishing();
    await this.stopConsuming();
  }

  /** The APIs in turn, so that a dead one is not asked for ever. */
  #nextUrl(): string {
    const { urls } = this.#options;
    this.#turn += 1;
    return urls[this.#turn % urls.length] ?? '';
  }

  async #publish(): Promise<void> {
    const { client, topic, keyedShare, batchMax, repeatsKeyless } = this.#options;
    const { signal } = this.#publishing;
    while (!signal.aborted) {
      if (!(await this.#waitForConsumers())) return;
      const size = Math.random() < 0.5 ? 1 : 1 + Math.floor(Math.random() * batchMax);
      const tags = Array.from({ length: size }, () => this.#ledger.nextTag());
      const key = Math.random() < keyedShare ? `key-${tags[0]}` : undefined;
      const isRepeated = key !== undefined || (repeatsKeyless && Math.random() < 0.5);
      for (;;) {
        const { outcome } = await client.publish(topicUrl(this.#nextUrl(), topic), tags, { key });
        if (outcome === 'ok') break;
        await delay(50);
        // A key is kept until its outcome is known: that is what it is for.
        if (!isRepeated || (key === undefined && signal.aborted)) break;
      }
    }
  }

  /** False when publishing ends meanwhile. */
  async #waitForConsumers(): Promise<boolean> {
    const { aheadMax } = this.#options;
    while (this.#ledger.accepted - this.#slowest() > aheadMax) {
      await delay(10);
      if (this.#publishing.signal.aborted) return false;
    }
    return true;
  }

  /** What the subscription that is furthest behind has done; infinite where nobody consumes. */
  #slowest(): number {
    const { pushSubscriptions = [] } = this.#options;
    const pushed = pushSubscriptions.map((name) => this.#ledger.acceptedPushes(name));
    return Math.min(...this.#acked.values(), ...pushed);
  }

  async #consume(subscription: string): Promise<void> {
    const { client, leaseSeconds, waitSeconds } = this.#options;
    while (!this.#consuming.signal.aborted) {
      await this.#ackOverdue(subscription);
      const url = this.#nextUrl();
      const deliveries = await client.receive(url, subscription, {
        max: 100,
        waitSeconds,
        leaseSeconds,
      });
      if (deliveries === undefined) await delay(50);
      else await this.#handle(url, subscription, deliveries);
    }
  }

  async #handle(url: string, subscription: string, deliveries: readonly Delivery[]): Promise<void> {
    const { client, overrunShare, nackShare } = this.#options;
    // Who held an event before acks it now, while somebody else has it.
    await client.ack(
      url,
      deliveries.flatMap((delivery) => this.#takeOverruns(delivery)),
    );
    const fates = Map.groupBy(deliveries, (delivery) => {
      const dice = this.#isDraining ? 1 : Math.random();
      if (dice < overrunShare) this.#overrun(delivery);
      return dice < overrunShare ? 'overrun' : dice < overrunShare + nackShare ? 'nack' : 'ack';
    });
    const acked = fates.get('ack') ?? [];
    await client.ack(url, acked);
    await client.nack(url, fates.get('nack') ?? [], 0);
    this.#acked.set(subscription, (this.#acked.get(subscription) ?? 0) + acked.length);
  }

  /** Half of them are acked some time after their end, half only when somebody else has received the event. */
  #overrun(delivery: Delivery): void {
    const endsAt = delivery.receive.doneAt + delivery.receive.leaseMs;
    const lateAckAt = Math.random() < 0.5 ? endsAt + Math.random() * 1000 : Infinity;
    const name = eventName(delivery);
    this.#overruns.set(name, [...(this.#overruns.get(name) ?? []), { delivery, lateAckAt }]);
  }

  #takeOverruns(delivery: Delivery): Delivery[] {
    const name = eventName(delivery);
    const overruns = this.#overruns.get(name) ?? [];
    this.#overruns.delete(name);
    return overruns.map((overrun) => overrun.delivery);
  }

  async #ackOverdue(subscription: string): Promise<void> {
    const now = performance.now();
    const due: Delivery[] = [];
    for (const overruns of this.#overruns.values()) {
      for (const { delivery, lateAckAt } of overruns) {
        if (delivery.subscription === subscription && lateAckAt <= now) due.push(delivery);
      }
    }
    for (const delivery of due) this.#takeOverruns(delivery);
    await this.#options.client.ack(this.#nextUrl(), due);
  }
}
