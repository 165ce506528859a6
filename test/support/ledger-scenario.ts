import type pg from 'pg';

import { query } from './database.ts';
import { eventually } from './eventually.ts';
import { HttpClient } from './http-client.ts';
import { checkLedger, type Findings } from './ledger-check.ts';
import { LedgerClient, subscriptionUrl, topicUrl } from './ledger-client.ts';
import { Load, type LoadOptions } from './ledger-load.ts';
import { Ledger, type LeaseEnd, type Push, type PushOutcome } from './ledger.ts';
import { type PushEndpoint, PushReceiver, type PushRequest } from './push-receiver.ts';

/** What a scenario needs to know of the processes that it is played on: a Cluster, or something that is reached from outside. */
export interface Broker {
  /** Of the APIs. */
  readonly urls: readonly string[];
  readonly adminKey: string;
  /** Throws when a process has ended that nobody had told to. */
  assertAlive(): void;
}

/** Runs one statement on the broker's database, past any proxy, and returns the rows. */
export type Sql = <Row extends pg.QueryResultRow>(
  text: string,
  parameters?: readonly unknown[],
) => Promise<Row[]>;

export interface ScenarioOptions {
  /** How the database is asked, or where it can be. */
  readonly sql?: Sql;
  readonly databaseUrl?: string;
  /** Of the publishers and consumers (one with the admin key). */
  readonly http?: HttpClient;
  /** Where the receiver of pushes listens (127.0.0.1). */
  readonly receiverAddress?: string;
  readonly maxAttempts?: number;
  readonly topic?: string;
  /** Of type pull (billing and audit). */
  readonly subscriptions?: readonly string[];
  /** Of type push (none), each with an endpoint of its own on a receiver of the scenario. */
  readonly pushSubscriptions?: readonly string[];
  /** Members of `push` beside the endpoint. */
  readonly push?: Readonly<Record<string, unknown>>;
  /** What stands between clients and broker repeats requests by itself, as nginx does. */
  readonly isRepeated?: boolean;
}

/** A topic with subscriptions on a cluster, a ledger of all that is done with them, and what the database knows of it. */
export class Scenario implements Disposable {
  readonly ledger = new Ledger();
  readonly http: HttpClient;
  readonly client: LedgerClient;
  readonly topic: string;
  readonly subscriptions: readonly string[];
  readonly pushSubscriptions: readonly string[];
  readonly #receiver: PushReceiver;
  readonly #endpoints = new Map<string, PushEndpoint>();
  readonly #cluster: Broker;
  readonly sql: Sql;
  readonly #maxAttempts: number;

  private constructor(cluster: Broker, receiver: PushReceiver, options: ScenarioOptions) {
    this.#cluster = cluster;
    this.#receiver = receiver;
    this.sql = sqlOf(options);
    this.#maxAttempts = options.maxAttempts ?? 10;
    this.topic = options.topic ?? 'orders';
    this.subscriptions = options.subscriptions ?? ['billing', 'audit'];
    this.pushSubscriptions = options.pushSubscriptions ?? [];
    this.http = options.http ?? new HttpClient(cluster.adminKey);
    this.client = new LedgerClient(this.ledger, this.http, options);
  }

  /** Makes the topic and the subscriptions. */
  static async open(cluster: Broker, options: ScenarioOptions): Promise<Scenario> {
    const receiver = await PushReceiver.start(options.receiverAddress);
    const scenario = new Scenario(cluster, receiver, options);
    const { http, topic, subscriptions, pushSubscriptions } = scenario;
    const [url = ''] = cluster.urls;
    await http.call(topicUrl(url, topic), { method: 'PUT', body: { max_backlog: 1_000_000 } });
    for (const name of subscriptions) await scenario.#put(name, { type: 'pull' });
    for (const name of pushSubscriptions) await scenario.#putPush(name, options.push ?? {});
    return scenario;
  }

  /** Of a push subscription: what came there, and what it does next. */
  endpoint(subscription: string): PushEndpoint {
    const endpoint = this.#endpoints.get(subscription);
    if (endpoint === undefined) throw new Error(`${subscription} has no endpoint`);
    return endpoint;
  }

  /** Begins to publish and to consume, over all APIs. */
  startLoad(options: Partial<LoadOptions> = {}): Load {
    const { client, topic, subscriptions, pushSubscriptions } = this;
    return new Load({
      client,
      urls: this.#cluster.urls,
      topic,
      subscriptions,
      pushSubscriptions,
      ...options,
    }).start();
  }

  /** Waits until so many more events are accepted. */
  async acceptMore(events: number, timeoutMs = 30_000): Promise<void> {
    const target = this.ledger.accepted + events;
    const look = (): void => {
      this.#cluster.assertAlive();
      if (this.ledger.accepted < target) throw new Error(`${this.ledger.accepted} of ${target}`);
    };
    await eventually(look, { timeoutMs, what: `${events} more accepted events` });
  }

  /** Ends the load when nothing is on its way any more. */
  async drain(load: Pick<Load, 'stopPublishing' | 'stop'>, timeoutMs = 60_000): Promise<void> {
    await load.stopPublishing();
    const look = async (): Promise<void> => {
      const [row] = await this.sql<{ left: string }>(
        `select count(*)::text as left from broker.queue q join broker.topic t on t.id = q.topic_id where t.name = $1`,
        [this.topic],
      );
      if (row?.left !== '0') throw new Error(`${row?.left} entries are left`);
    };
    await eventually(look, { timeoutMs, intervalMs: 100, what: 'an empty queue' });
    await load.stop();
  }

  /** What the ledger and the database say together. */
  async findings(): Promise<Findings> {
    for (const { badSignatures } of this.#endpoints.values()) {
      this.ledger.defects.push(...badSignatures.splice(0));
    }
    const dead = await this.sql<{ name: string; id: string }>(
      `select s.name, coalesce(d.origin_id, d.event_id)::text as id
         from broker.dead_letter d join broker.subscription s on s.id = d.subscription_id`,
    );
    const leaseEnds = await this.sql<LeaseEnd>(
      `select s.name as subscription, ((a.publish_id << 10) + o)::text as "eventId", a.attempt, a.outcome::text, a.error
         from broker.attempt a join broker.subscription s on s.id = a.subscription_id, unnest(a.ordinals) o
        where s.name = any ($1)`,
      [this.pushSubscriptions],
    );
    const stored = await this.sql<{ id: string }>(
      `select e.id::text from broker.event e join broker.topic t on t.id = e.topic_id where t.name = $1`,
      [this.topic],
    );
    const deadBySubscription = Map.groupBy(dead, ({ name }) => name);
    return checkLedger(this.ledger, {
      subscriptions: this.subscriptions,
      pushSubscriptions: this.pushSubscriptions,
      leaseEnds,
      maxAttempts: this.#maxAttempts,
      dead: new Map(
        [...deadBySubscription].map(([name, rows]) => [name, new Set(rows.map(({ id }) => id))]),
      ),
      stored: stored.map(({ id }) => id),
    });
  }

  [Symbol.dispose](): void {
    this.http[Symbol.dispose]();
    this.#receiver[Symbol.dispose]();
  }

  async #put<Body>(name: string, members: Readonly<Record<string, unknown>>): Promise<Body> {
    const [url = ''] = this.#cluster.urls;
    const { topic } = this;
    const retryPolicy = {
      max_attempts: this.#maxAttempts,
      minimum_backoff_ms: 10,
      maximum_backoff_ms: 100,
    };
    const body = { topic, retry_policy: retryPolicy, ...members };
    return this.http.call<Body>(subscriptionUrl(url, name), { method: 'PUT', body });
  }

  async #putPush(name: string, push: Readonly<Record<string, unknown>>): Promise<void> {
    const { ledger } = this;
    const pushes = new Map<PushRequest, Push>();
    const endpoint = this.#receiver.endpoint(`/${name}`, {
      keepsBodies: false,
      onRead: (request) => {
        const { eventId, attempt, body } = request;
        const tag = tagOf(body);
        pushes.set(request, ledger.beginPush({ subscription: name, eventId, tag, attempt }));
      },
      onEnd: (request) => {
        const begun = pushes.get(request);
        if (begun !== undefined) ledger.endPush(begun, outcomeOf(request));
        pushes.delete(request);
      },
    });
    this.#endpoints.set(name, endpoint);
    const made = await this.#put<{ push: { secret: string } }>(name, {
      type: 'push',
      push: { ...push, endpoint: endpoint.url },
    });
    endpoint.secret = made.push.secret;
  }
}

function sqlOf({ sql, databaseUrl }: ScenarioOptions): Sql {
  if (sql !== undefined) return sql;
  if (databaseUrl === undefined) throw new Error('a scenario needs sql or a databaseUrl');
  return async (text, parameters) => query(databaseUrl, text, parameters);
}

function outcomeOf({ state, status = 0 }: PushRequest): PushOutcome {
  if (state !== 'answered') return 'unknown';
  return status >= 200 && status < 300 ? 'accepted' : 'refused';
}

/** Of an event as it is, or in the envelope of CloudEvents. */
function tagOf(body: string): string {
  const { tag, data } = JSON.parse(body) as { tag?: string; data?: { tag?: string } };
  return tag ?? data?.tag ?? `? ${body}`;
}
