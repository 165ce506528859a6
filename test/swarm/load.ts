import { setTimeout as delay } from 'node:timers/promises';

import type { Trust } from '#test/support/http-client.ts';
import type { Findings } from '#test/support/ledger-check.ts';
import { type LedgerClient, topicUrl } from '#test/support/ledger-client.ts';
import { Scenario, type ScenarioOptions } from '#test/support/ledger-scenario.ts';
import type { Delivery, Ledger, Operation } from '#test/support/ledger.ts';

import { type LoadReport, reportOf } from './load-report.ts';
import { SpreadClient } from './spread-client.ts';

export interface ConstantLoadOptions extends Pick<
  ScenarioOptions,
  | 'sql'
  | 'databaseUrl'
  | 'receiverAddress'
  | 'topic'
  | 'subscriptions'
  | 'pushSubscriptions'
  | 'push'
> {
  /** Base URLs of nginx, one for each address at which clients find it. */
  readonly addresses: readonly string[];
  /** May do everything; the topic and the subscriptions are made with it, through nginx. */
  readonly adminKey: string;
  /** Where the addresses are `https:`. */
  readonly trust?: Trust;
  /** Publishes that are begun in a second, however those before fare (40). */
  readonly perSecond?: number;
  /** Long polls that are open at a time, of each subscription of type pull (4). */
  readonly pollers?: number;
  /** How long a long poll waits (20). */
  readonly waitSeconds?: number;
  readonly leaseSeconds?: number;
}

const defaults = { perSecond: 40, pollers: 4, waitSeconds: 20, leaseSeconds: 15 };
/** In turn: half of the requests are single events with a key, four of ten single events without, one an array with a key. */
const turns = 'keyed plain keyed plain batch keyed plain keyed plain keyed'.split(' ');
const batchSize = 10;
/** Publishes under way at a time; past it none is begun, which the report says. */
const underWayMax = 2000;
/** How long after the end a publish with a key is repeated that has not been answered with success. */
const repeatMs = 60_000;
const attempts = 20;

/**
 * A constant load from outside: single events with and without a key, arrays, long polls that are open all the time and acked, and
 * pushes to a receiver in this process. A publish with a key is repeated until it is accepted; each try counts by itself.
 */
export class ConstantLoad implements Disposable {
  readonly scenario: Scenario;
  readonly #options: ConstantLoadOptions & typeof defaults;
  readonly #http: SpreadClient;
  readonly #startedAt = performance.now();
  readonly #publishing = new AbortController();
  readonly #consuming = new AbortController();
  readonly #underWay = new Set<Promise<void>>();
  readonly #pollers: Promise<void>[] = [];
  #pace: Promise<void> | undefined;
  #stopsRepeatingAt = Infinity;
  #heldBack = 0;

  private constructor(options: ConstantLoadOptions, http: SpreadClient, scenario: Scenario) {
    this.#options = { ...defaults, ...options };
    this.#http = http;
    this.scenario = scenario;
  }

  /** Makes the topic and the subscriptions, and begins. */
  static async start(options: ConstantLoadOptions): Promise<ConstantLoad> {
    const { addresses, adminKey, trust, ...rest } = options;
    const http = new SpreadClient(adminKey, addresses, trust === undefined ? {} : { trust });
    const broker = { urls: addresses, adminKey, assertAlive: () => {} };
    const scenario = await Scenario.open(broker, {
      pushSubscriptions: ['mailer'],
      ...rest,
      http,
      isRepeated: true,
      maxAttempts: attempts,
    });
    const load = new ConstantLoad(options, http, scenario);
    load.#begin();
    return load;
  }

  /** Milliseconds since it began: the clock of the report. */
  get now(): number {
    return performance.now() - this.#startedAt;
  }

  get ledger(): Ledger {
    return this.scenario.ledger;
  }

  /** Connections that could not be made so far, by address and cause. */
  get unconnected(): ReadonlyMap<string, number> {
    return this.#http.unconnected;
  }

  /** Requests that have failed so far. */
  get failedCount(): number {
    const { publishes, receives, settles } = this.ledger;
    const all: readonly Operation[] = [...publishes, ...receives, ...settles];
    return all.filter(({ outcome, doneAt }) => outcome !== 'ok' && doneAt !== Infinity).length;
  }

  /** Ends it when nothing is on its way any more, and says what came of it. */
  async finish(drainMs = 120_000): Promise<LoadReport> {
    const endedAt = this.now;
    await this.scenario.drain(this, drainMs);
    return this.#report(endedAt, await this.scenario.findings());
  }

  /** Ends publishing, once each publish has its outcome. */
  async stopPublishing(): Promise<void> {
    this.#stopsRepeatingAt = performance.now() + repeatMs;
    this.#publishing.abort();
    await this.#pace;
    await Promise.all(this.#underWay);
  }

  /** Ends the long polls, whatever they wait for. */
  async stop(): Promise<void> {
    await this.stopPublishing();
    this.#consuming.abort();
    await Promise.all(this.#pollers);
  }

  [Symbol.dispose](): void {
    this.#stopsRepeatingAt = 0;
    this.#publishing.abort();
    this.#consuming.abort();
    this.scenario[Symbol.dispose]();
  }

  #begin(): void {
    const { subscriptions } = this.scenario;
    for (const subscription of subscriptions) {
      for (let n = 0; n < this.#options.pollers; n += 1) {
        this.#pollers.push(this.#poll(subscription));
      }
    }
    this.#pace = this.#keepPace();
  }

  async #keepPace(): Promise<void> {
    const { signal } = this.#publishing;
    const gapMs = 1000 / this.#options.perSecond;
    for (let n = 0; !signal.aborted; n += 1) {
      const aheadMs = n * gapMs - this.now;
      if (aheadMs > 0) await delay(aheadMs);
      if (this.#underWay.size >= underWayMax) {
        this.#heldBack += 1;
        continue;
      }
      const publish = this.#publish(turns[n % turns.length] ?? '');
      this.#underWay.add(publish);
      void publish.finally(() => this.#underWay.delete(publish));
    }
  }

  async #publish(turn: string): Promise<void> {
    const { client, topic } = this.scenario;
    const size = turn === 'batch' ? batchSize : 1;
    const tags = Array.from({ length: size }, () => this.ledger.nextTag());
    const key = turn === 'plain' ? undefined : `key-${tags[0]}`;
    for (;;) {
      const { outcome } = await client.publish(topicUrl(this.#url, topic), tags, { key });
      if (outcome === 'ok' || key === undefined) return;
      if (performance.now() >= this.#stopsRepeatingAt) return;
      await delay(200);
    }
  }

  async #poll(subscription: string): Promise<void> {
    const { client } = this.scenario;
    const { waitSeconds, leaseSeconds } = this.#options;
    const { signal } = this.#consuming;
    const ask = { max: 100, waitSeconds, leaseSeconds, signal };
    while (!signal.aborted) {
      const deliveries = await client.receive(this.#url, subscription, ask);
      if (deliveries === undefined) await delay(200);
      else await this.#ack(client, deliveries);
    }
  }

  async #ack(client: LedgerClient, deliveries: readonly Delivery[]): Promise<void> {
    if (deliveries.length > 0) await client.ack(this.#url, deliveries);
  }

  /** The client puts one of the addresses in its place. */
  get #url(): string {
    return this.#options.addresses[0] ?? '';
  }

  #report(endedAt: number, findings: Findings): LoadReport {
    return reportOf(this.ledger, {
      startedAt: this.#startedAt,
      durationMs: endedAt,
      heldBack: this.#heldBack,
      unconnected: this.#http.unconnected,
      findings,
    });
  }
}
