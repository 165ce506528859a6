import type pg from 'pg';

import type { Cluster } from './cluster.ts';
import { query } from './database.ts';
import { eventually } from './eventually.ts';
import { HttpClient } from './http-client.ts';
import { checkLedger, type Findings } from './ledger-check.ts';
import { LedgerClient, subscriptionUrl, topicUrl } from './ledger-client.ts';
import { Load, type LoadOptions } from './ledger-load.ts';
import { Ledger } from './ledger.ts';

export interface ScenarioOptions {
  /** Past any proxy. */
  readonly databaseUrl: string;
  readonly maxAttempts?: number;
  readonly topic?: string;
  readonly subscriptions?: readonly string[];
}

/** A topic with subscriptions on a cluster, a ledger of all that is done with them, and what the database knows of it. */
export class Scenario implements Disposable {
  readonly ledger = new Ledger();
  readonly http: HttpClient;
  readonly client: LedgerClient;
  readonly topic: string;
  readonly subscriptions: readonly string[];
  readonly #cluster: Cluster;
  readonly #databaseUrl: string;
  readonly #maxAttempts: number;

  private constructor(cluster: Cluster, options: ScenarioOptions) {
    this.#cluster = cluster;
    this.#databaseUrl = options.databaseUrl;
    this.#maxAttempts = options.maxAttempts ?? 10;
    this.topic = options.topic ?? 'orders';
    this.subscriptions = options.subscriptions ?? ['billing', 'audit'];
    this.http = new HttpClient(cluster.adminKey);
    this.client = new LedgerClient(this.ledger, this.http);
  }

  /** Makes the topic and the subscriptions. */
  static async open(cluster: Cluster, options: ScenarioOptions): Promise<Scenario> {
    const scenario = new Scenario(cluster, options);
    const { http, topic, subscriptions } = scenario;
    const [url = ''] = cluster.urls;
    await http.call(topicUrl(url, topic), { method: 'PUT', body: { max_backlog: 1_000_000 } });
    for (const name of subscriptions) {
      await http.call(subscriptionUrl(url, name), {
        method: 'PUT',
        body: {
          topic,
          type: 'pull',
          retry_policy: {
            max_attempts: scenario.#maxAttempts,
            minimum_backoff_ms: 10,
            maximum_backoff_ms: 100,
          },
        },
      });
    }
    return scenario;
  }

  /** Begins to publish and to consume, over all APIs. */
  startLoad(options: Partial<LoadOptions> = {}): Load {
    const { client, topic, subscriptions } = this;
    return new Load({
      client,
      urls: this.#cluster.urls,
      topic,
      subscriptions,
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
  async drain(load: Load, timeoutMs = 60_000): Promise<void> {
    await load.stopPublishing();
    const look = async (): Promise<void> => {
      const [row] = await this.sql<{ left: string }>('select count(*) as left from broker.queue');
      if (row?.left !== '0') throw new Error(`${row?.left} entries are left`);
    };
    await eventually(look, { timeoutMs, intervalMs: 100, what: 'an empty queue' });
    await load.stop();
  }

  /** What the ledger and the database say together. */
  async findings(): Promise<Findings> {
    const dead = await this.sql<{ name: string; id: string }>(
      `select s.name, coalesce(d.origin_id, d.event_id)::text as id
         from broker.dead_letter d join broker.subscription s on s.id = d.subscription_id`,
    );
    const stored = await this.sql<{ id: string }>('select id::text from broker.event');
    const deadBySubscription = Map.groupBy(dead, ({ name }) => name);
    return checkLedger(this.ledger, {
      subscriptions: this.subscriptions,
      maxAttempts: this.#maxAttempts,
      dead: new Map(
        [...deadBySubscription].map(([name, rows]) => [name, new Set(rows.map(({ id }) => id))]),
      ),
      stored: stored.map(({ id }) => id),
    });
  }

  async sql<Row extends pg.QueryResultRow>(
    text: string,
    parameters: readonly unknown[] = [],
  ): Promise<Row[]> {
    return query<Row>(this.#databaseUrl, text, parameters);
  }

  [Symbol.dispose](): void {
    this.http[Symbol.dispose]();
  }
}
