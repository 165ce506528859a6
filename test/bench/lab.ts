import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { createDatabase, type Database } from '#db/client.ts';
import { migrate } from '#db/migrate.ts';
import { publishBatch } from '#db/publish.ts';
import { putSubscription } from '#db/subscriptions.ts';
import { putTopic } from '#db/topics.ts';
import { Cluster } from '#test/support/cluster.ts';
import { HttpClient } from '#test/support/http-client.ts';
import { startEmbeddedPostgres } from '../../apps/standalone/embedded-postgres.ts';
import { newEvents } from './events.ts';
import type { HttpTarget } from './http-connection.ts';

/** Something to publish to and to consume from. */
export interface Place {
  readonly topicId: number;
  readonly topic: string;
  readonly subscriptionId: number;
  readonly subscription: string;
}

/** A topic with push subscriptions; disposing deletes them, so that no later worker sends what is left. */
export interface PushPlace extends AsyncDisposable {
  readonly topic: string;
  /** Publishes so many events. */
  readonly fill: (events: number) => Promise<void>;
}

/** A migrated database of its own on a server with fsync, an API process on it, and connections to both. */
export interface Lab extends AsyncDisposable {
  readonly db: Database;
  /** A superuser's, where the server was started here. */
  readonly control: pg.Client;
  readonly copiers: readonly pg.Client[];
  readonly api: HttpTarget & { readonly pid: number };
  readonly server: string;
  readonly databaseUrl: string;
  /** A topic with one subscription, in which so many events wait. */
  readonly place: (waiting: number) => Promise<Place>;
  /** A topic with so many subscriptions that are pushed to an endpoint. */
  readonly pushPlace: (endpoint: string, subscriptions: number) => Promise<PushPlace>;
  /** Takes all events out of the database. */
  readonly empty: () => Promise<void>;
  /** Ends the API, so that its backends have counted everything; transactions committed since the start. */
  readonly finish: () => Promise<number>;
}

/** As many as the machine of the design has cores. */
export const lanes = 2;

const database = 'broker_bench';
const fillBatch = 500;

export async function openLab(givenUrl: string | undefined): Promise<Lab> {
  await using stack = new AsyncDisposableStack();
  const adminUrl = givenUrl ?? (await startServer(stack));
  const url = new URL(adminUrl);
  url.pathname = `/${database}`;
  const admin = await openClient(adminUrl, stack);
  await admin.query(`drop database if exists ${database}`);
  await admin.query(`create database ${database}`);
  stack.defer(async () => void (await admin.query(`drop database ${database} with (force)`)));
  await migrate({ databaseUrl: url.href });
  const control = await openClient(url.href, stack);
  const copiers = [await openClient(url.href, stack), await openClient(url.href, stack)];
  const handle = stack.use(
    createDatabase({
      url: url.href,
      applicationName: 'broker-bench',
      poolMax: lanes,
      statementTimeoutMs: 30_000,
    }),
  );
  const env = { LOG_LEVEL: 'warn', NODE_ENV: 'development' };
  const cluster = stack.use(await Cluster.start({ databaseUrl: url.href, reapers: 0, env }));
  const { rows } = await control.query<{ version: string; fsync: string }>(
    `select current_setting('server_version') as version, current_setting('fsync') as fsync`,
  );
  const http = stack.use(new HttpClient(cluster.adminKey));
  const owned = stack.move();
  const [apiUrl = ''] = cluster.urls;
  return {
    db: handle.db,
    control,
    copiers,
    api: {
      port: Number(new URL(apiUrl).port),
      apiKey: cluster.adminKey,
      pid: cluster.apis[0]?.pid ?? 0,
    },
    databaseUrl: url.href,
    server: `PostgreSQL ${rows[0]?.version}, fsync ${rows[0]?.fsync}`,
    place: (waiting) => makePlace(handle.db, waiting),
    pushPlace: (endpoint, subscriptions) =>
      makePushPlace({ db: handle.db, http, apiUrl }, endpoint, subscriptions),
    empty: async () => {
      await control.query('truncate broker.event, broker.attempt, broker.queue, bench.event');
    },
    finish: async () => {
      await cluster.killAll('SIGTERM');
      await handle.close();
      return committed(admin);
    },
    [Symbol.asyncDispose]: async () => owned.disposeAsync(),
  };
}

async function startServer(stack: AsyncDisposableStack): Promise<string> {
  const dataDir = await mkdtemp(join(tmpdir(), 'event-broker-bench-'));
  stack.defer(async () => rm(dataDir, { recursive: true, force: true }));
  const postgres = stack.use(await startEmbeddedPostgres({ dataDir }));
  return postgres.superuserUrl;
}

async function openClient(url: string, stack: AsyncDisposableStack): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url, application_name: 'broker-bench' });
  await client.connect();
  stack.defer(async () => client.end());
  return client;
}

let places = 0;

async function makePlace(db: Database, waiting: number): Promise<Place> {
  places += 1;
  const topic = `bench-${places}`;
  const subscription = `bench-${places}`;
  const put = await putTopic(db, topic, {
    retention_seconds: 3600,
    deduplication_seconds: 3600,
    deduplicate_event_ids: true,
    max_backlog: 1_000_000_000,
  });
  const made = await putSubscription(db, {
    name: subscription,
    topic,
    type: 'pull',
    settings: {
      filter: null,
      visibility_timeout_seconds: 60,
      max_attempts: 10,
      minimum_backoff_ms: 1000,
      maximum_backoff_ms: 60_000,
      backoff_multiplier: 2,
      retry_client_errors: false,
      backpressure: false,
      on_expiry: 'drop',
      push: null,
    },
  });
  if (!('id' in made)) throw new Error(made.status);
  await fill(db, put.topic.id, waiting);
  return { topicId: put.topic.id, topic, subscriptionId: made.id, subscription };
}

async function makePushPlace(
  {
    db,
    http,
    apiUrl,
  }: { readonly db: Database; readonly http: HttpClient; readonly apiUrl: string },
  endpoint: string,
  subscriptions: number,
): Promise<PushPlace> {
  places += 1;
  const topic = `bench-${places}`;
  const limits = { retention_seconds: 3600, max_backlog: 1_000_000_000 };
  await http.call(`${apiUrl}/api/v1/topics/${topic}`, { method: 'PUT', body: limits });
  const urls = Array.from({ length: subscriptions }, (_, index) => {
    return `${apiUrl}/api/v1/subscriptions/${topic}-${index + 1}`;
  });
  for (const url of urls) {
    await http.call(url, { method: 'PUT', body: { topic, type: 'push', push: { endpoint } } });
  }
  return {
    topic,
    fill: async (events) => fill(db, await topicId(db, topic), events),
    async [Symbol.asyncDispose]() {
      for (const url of urls) await http.call(url, { method: 'DELETE' });
    },
  };
}

async function topicId(db: Database, topic: string): Promise<number> {
  const row = await db
    .selectFrom('topic')
    .select('id')
    .where('name', '=', topic)
    .executeTakeFirstOrThrow();
  return row.id;
}

async function fill(db: Database, id: number, waiting: number): Promise<void> {
  const events = newEvents(fillBatch);
  for (let filled = 0; filled < waiting; filled += fillBatch * lanes) {
    const calls = Array.from({ length: lanes }, () => publishBatch(db, id, [{ events }]));
    await Promise.all(calls);
  }
}

async function committed(client: pg.Client): Promise<number> {
  const { rows } = await client.query<{ count: string }>(
    `select xact_commit as count from pg_stat_database where datname = $1`,
    [database],
  );
  return Number(rows[0]?.count);
}
