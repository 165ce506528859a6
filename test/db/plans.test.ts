// Goal: every hot verb has one plan, whatever the statistics say.
// Method: the same calls on four tables: empty, full, never analysed, and analysed with one row before it was filled. Each
// call is repeated until PostgreSQL may choose a generic plan. Counted: the buffers of the whole call; looked for in the
// nested plans (auto_explain): a sequential scan of a big table, or a sort of many rows.
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createDatabase } from '#db/client.ts';
import { cloneDatabase } from '../support/database.ts';
import { aSubscription, aTerm, aTopic, publishMany } from '../support/factory.ts';

const entries = 200_000;
const tables = ['empty', 'full', 'never analysed', 'analysed with one row'] as const;
// what was seen is printed; a flipped plan costs thousands
const buffersMax = {
  publish: 400,
  claim: 700,
  settle: 900,
  extend: 300,
  reap: 900,
  due: 60,
  take_over: 900,
  topics_leased_by: 300,
};

type TestDatabase = Awaited<ReturnType<typeof cloneDatabase>>;

interface Subject {
  readonly database: TestDatabase;
  readonly client: pg.Client;
  readonly plans: string[];
  topic: number;
  subscription: number;
  term: string;
}

async function prepare(table: (typeof tables)[number]): Promise<Subject> {
  const database = await cloneDatabase();
  await using handle = createDatabase({
    url: database.url,
    applicationName: 'broker-test',
    poolMax: 1,
    statementTimeoutMs: 60_000,
  });
  const topic = await aTopic(handle.db);
  const subscription = await aSubscription(handle.db, topic, {
    max_attempts: 100,
    minimum_backoff_ms: 0,
    maximum_backoff_ms: 0,
  });
  const term = await aTerm(handle.db);
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  const { rows } = await client.query<{
    name: string;
  }>(`select format('broker.%I', relname) as name from pg_class
    where relnamespace = 'broker'::regnamespace and relkind = 'r' and relname ~ '^(queue|event_|attempt_|dead_letter|idempotency)'`);
  for (const { name } of rows)
    await client.query(`alter table ${name} set (autovacuum_enabled = false)`);
  if (table === 'analysed with one row') {
    await publishMany(handle.db, topic, 1);
    await client.query('analyze');
  }
  if (table !== 'empty') await fill(client, topic, subscription);
  if (table === 'full') await client.query('analyze');
  const subject = { database, client, plans: [] as string[], topic, subscription, term };
  await client.query(`load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
    set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set client_min_messages = log`);
  client.on('notice', (notice) => subject.plans.push(notice.message ?? ''));
  return subject;
}

/** Single-event entries: most waiting, 10,000 leased for an hour by two workers, 10,000 with leases that ran out. */
async function fill(client: pg.Client, topic: number, subscription: number): Promise<void> {
  await client.query(`with base as materialized (select broker.id_floor(clock_timestamp()) as id, clock_timestamp() as at)
    insert into broker.event (id, published_at, expires_at, topic_id, retention_class, type, data)
    select (base.id + i) << 10, base.at, base.at + interval '7 days', ${topic}, 168, 't', '{"a":1}'
      from base, generate_series(1, ${entries}) i`);
  await client.query(`insert into broker.queue (topic_id, publish_id, subscription_id, ordinals, event_count, bytes, available_at,
      retention_class, lease_expires_at, generation, attempt, leased_by)
    select ${topic}, e.id >> 10, ${subscription}, '{0}', 1, 10, clock_timestamp() - interval '1 day' + e.n * interval '1 millisecond',
        168, case when e.n % 20 = 0 then clock_timestamp() + interval '1 hour' when e.n % 20 = 1 then clock_timestamp() - interval '1 hour' end,
        case when e.n % 20 < 2 then 1 else 0 end, case when e.n % 20 < 2 then 1 else 0 end,
        case when e.n % 40 = 0 then 'worker-a' when e.n % 40 = 20 then 'worker-b' end
      from (select id, row_number() over (order by id) as n from broker.event) e`);
}

/** Runs one call under EXPLAIN: the buffers that it touched, nested statements included. */
async function buffersOf(subject: Subject, call: string): Promise<number> {
  const { rows } = await subject.client.query<{ 'QUERY PLAN': [{ Plan: Record<string, number> }] }>(
    `explain (analyze, buffers, timing off, format json) ${call}`,
  );
  const plan = rows[0]?.['QUERY PLAN'][0].Plan ?? {};
  return (plan['Shared Hit Blocks'] ?? 0) + (plan['Shared Read Blocks'] ?? 0);
}

const publishCall = (
  subject: Subject,
): string => `select * from broker.publish_batch(${subject.topic}, array_fill(1, array[10]),
  array_fill('t'::text, array[10]), array_fill('{}'::json, array[10]), array_fill(10, array[10]), null, null, null, null, null, null,
  null, null, null, null, null, null, (select array_agg(md5(random()::text || i)::text::bytea) from generate_series(1, 10) i),
  array_fill('x'::bytea, array[10]), null, null)`;

const claimCall = (subject: Subject): string =>
  `select * from broker.claim(${subject.topic}, array[${subject.subscription}], array[10], array[1000000],
    array['-infinity'::timestamptz], 3600000, null)`;

/** Some leased entries as arguments of settle and extend. */
async function leasedArguments(subject: Subject): Promise<string> {
  const { rows } = await subject.client.query<{
    publish_id: string;
    id: string;
    generation: number;
  }>(
    `select publish_id, id, generation from broker.queue where subscription_id = ${subject.subscription}
      and lease_expires_at > clock_timestamp() + interval '50 minutes' limit 10`,
  );
  const list = (values: unknown[], type: string): string => `array[${values.join(',')}]::${type}[]`;
  return [
    list(
      rows.map((row) => row.publish_id),
      'bigint',
    ),
    list(
      rows.map((row) => row.id),
      'bigint',
    ),
    list(
      rows.map((row) => row.generation),
      'int',
    ),
  ].join(', ');
}

const mixed = `array['acked','acked','acked','nacked','nacked','nacked','rejected','rejected','released','acked']`;

const calls = {
  publish: async (subject: Subject) => publishCall(subject),
  claim: async (subject: Subject) => claimCall(subject),
  settle: async (subject: Subject) =>
    `select * from broker.settle(${subject.topic}, ${subject.subscription}, ${await leasedArguments(subject)},
      array_fill(168::smallint, array[10]), array_fill('{0}'::text, array[10]), ${mixed}, null, null, null, null, null)`,
  extend: async (subject: Subject) =>
    `select * from broker.extend(${subject.topic}, ${subject.subscription}, ${await leasedArguments(subject)},
      array_fill(0::smallint, array[10]), 3600000)`,
  reap: async (subject: Subject) =>
    `select * from broker.reap(${subject.topic}, ${subject.term}, 10, '-infinity')`,
  take_over: async (subject: Subject) =>
    `select * from broker.take_over(${subject.topic}, ${subject.term}, 'worker-a', 10)`,
  topics_leased_by: async () => `select * from broker.topics_leased_by('{worker-b,worker-gone}')`,
  due: async (subject: Subject) =>
    `select * from broker.due(${subject.topic}, clock_timestamp() - interval '2 days')`,
};

describe.each(tables)('on a table that is %s', (table) => {
  let subject: Subject;
  beforeAll(async () => {
    subject = await prepare(table);
  });
  afterAll(async () => {
    await subject.client.end();
    await subject.database[Symbol.asyncDispose]();
  });

  test.each(Object.keys(calls) as (keyof typeof calls)[])('%s has its one plan', async (verb) => {
    // an empty queue has nothing to settle before something was published and claimed
    if (table === 'empty' && verb !== 'publish') {
      await subject.client.query(publishCall(subject));
      await subject.client.query(claimCall(subject));
    }
    const buffers: number[] = [];
    for (let i = 0; i < 10; i++) {
      const call = await calls[verb](subject);
      subject.plans.length = 0;
      buffers.push(await buffersOf(subject, call));
      for (const plan of subject.plans) {
        expect(plan).not.toMatch(/Seq Scan on (queue|event|attempt|dead_letter|idempotency_key)/);
        expect(sortedRows(plan), plan).toBeLessThanOrEqual(1000);
      }
      expect(subject.plans.length).toBeGreaterThan(1);
    }
    // the first call of a session reads the catalog too
    const seen = buffers.slice(1);
    process.stdout.write(
      `${verb} on ${table}: ${Math.min(...seen)}-${Math.max(...seen)} buffers\n`,
    );
    expect(Math.max(...seen)).toBeLessThanOrEqual(buffersMax[verb]);
  });
});

/** The most rows that any sort of a plan has seen. */
function sortedRows(plan: string): number {
  const sorts = [...plan.matchAll(/(?:^|->)\s*(?:Incremental )?Sort .*?actual rows=([\d.]+)/gm)];
  return Math.max(0, ...sorts.map((match) => Number(match[1])));
}
