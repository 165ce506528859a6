import { Cluster, type ClusterOptions } from './cluster.ts';
import { query } from './database.ts';
import { HttpClient } from './http-client.ts';
import { type Behaviour, type PushEndpoint, PushReceiver } from './push-receiver.ts';

export interface PushStageOptions extends ClusterOptions {
  readonly databaseUrl: string;
  /** The connection of the test itself, past any proxy (databaseUrl). */
  readonly directUrl?: string;
}

export interface HookOptions {
  readonly behaviour?: Behaviour;
  readonly topic?: string;
  readonly timeoutMs?: number;
  readonly maxAttempts?: number;
  readonly backoffMs?: number;
}

/** A cluster with push: topics, subscriptions, and a receiver in the test's own process. */
export class PushStage implements AsyncDisposable {
  readonly cluster: Cluster;
  readonly receiver: PushReceiver;
  readonly http: HttpClient;
  readonly #directUrl: string;

  private constructor(cluster: Cluster, receiver: PushReceiver, directUrl: string) {
    this.cluster = cluster;
    this.receiver = receiver;
    this.http = new HttpClient(cluster.adminKey);
    this.#directUrl = directUrl;
  }

  static async start(options: PushStageOptions): Promise<PushStage> {
    const cluster = await Cluster.start({ workers: 2, ...options });
    const receiver = await PushReceiver.start();
    return new PushStage(cluster, receiver, options.directUrl ?? options.databaseUrl);
  }

  get api(): string {
    return `${this.cluster.apis[0]!.url}/api/v1`;
  }

  /** A push subscription of this name on a topic (of the same name) that is made with it, and its endpoint. */
  async hook(name: string, options: HookOptions = {}): Promise<PushEndpoint> {
    const { topic = name, timeoutMs = 60_000, maxAttempts = 10, backoffMs = 50 } = options;
    const endpoint = this.receiver.endpoint(`/${name}`, {
      ...(options.behaviour !== undefined && { behaviour: options.behaviour }),
    });
    await this.http.call(`${this.api}/topics/${topic}`, { method: 'PUT', body: {} });
    const answer = await this.http.call(`${this.api}/subscriptions/${name}`, {
      method: 'PUT',
      body: {
        topic,
        type: 'push',
        push: { endpoint: endpoint.url, timeout_ms: timeoutMs },
        retry_policy: {
          max_attempts: maxAttempts,
          minimum_backoff_ms: backoffMs,
          maximum_backoff_ms: backoffMs,
        },
      },
    });
    endpoint.secret = (answer as { push: { secret?: string } }).push.secret;
    return endpoint;
  }

  /** Publishes so many events at once; returns their ids. */
  async publish(topic: string, events: number, data: object = {}): Promise<string[]> {
    const body = Array.from({ length: events }, (_, n) => ({ type: 'test', data: { n, ...data } }));
    const answer = await this.http.call(`${this.api}/topics/${topic}/events`, { body });
    return (answer as { results: { id: string }[] }).results.map(({ id }) => id);
  }

  /** One statement on the database, past any proxy. */
  async sql<Row extends object>(text: string, parameters: readonly unknown[] = []): Promise<Row[]> {
    return query<Row>(this.#directUrl, text, parameters);
  }

  /** What is leased: so many events by each. */
  async leased(): Promise<Record<string, number>> {
    const rows = await this.sql<{ leased_by: string; events: number }>(
      `select leased_by, sum(event_count)::int as events from broker.queue
        where lease_expires_at is not null group by 1`,
    );
    return Object.fromEntries(rows.map((row) => [row.leased_by, row.events]));
  }

  /** The sum of a metric of a process over all its labels; 0 where it says nothing of it. */
  async metric(url: string, name: string, labels = ''): Promise<number> {
    const { text } = await this.http.send(`${url}/api/metrics`);
    let sum = 0;
    for (const line of text.split('\n')) {
      if (line.startsWith(name) && line.includes(labels)) sum += Number(line.split(' ').at(-1));
    }
    return sum;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.receiver[Symbol.dispose]();
    this.http[Symbol.dispose]();
    await this.cluster[Symbol.asyncDispose]();
  }
}
