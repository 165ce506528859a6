import { sql } from 'kysely';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createDatabase } from '#db/client.ts';
import { observeDatabase } from '#db/observe.ts';
import { ensurePartitions } from '#db/partitions.ts';
import { query } from '../support/database.ts';
import { eventually } from '../support/eventually.ts';
import { aSubscription, aTopic, publishMany } from '../support/factory.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

async function openSession() {
  const client = new pg.Client({ connectionString: database.url, application_name: 'a-session' });
  await client.connect();
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() });
}

test('everything that the server and our small tables say is there', async () => {
  const { db } = database;
  const topic = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
  await ensurePartitions(db);
  await sql`insert into broker.job (type, state, topic_id, subscription_id, total, finished_at) values
    ('redrive', 'running', ${topic}, 1, 1, null), ('redrive', 'failed', ${topic}, 1, 1, clock_timestamp()),
    ('redrive', 'succeeded', ${topic}, 1, 1, clock_timestamp() - interval '2 hours')`.execute(db);
  await sql`insert into broker.worker (instance, service, version, host, pid, heartbeat_at) values
    ('one', 'api', '1', 'h', 1, clock_timestamp()), ('two', 'api', '1', 'h', 1, clock_timestamp()),
    ('silent', 'reaper', '1', 'h', 1, clock_timestamp() - interval '1 minute')`.execute(db);
  const seen = await observeDatabase(db);
  expect(seen).toMatchObject({
    oldest_transaction_seconds: expect.any(Number) as number,
    xmin_age_seconds: expect.any(Number) as number,
    lock_waits: 0,
    connections_max: Number(
      (await query(database.url, 'show max_connections'))[0]!['max_connections'],
    ),
    replicas: [],
    processes: [{ service: 'api', processes: 2 }],
  });
  expect(seen.wal_bytes).toBeGreaterThan(0);
  expect(seen.size_bytes).toBeGreaterThan(1_000_000);
  expect(seen.connections).toBeGreaterThan(0);
  expect(seen.jobs.toSorted((a, b) => (a.state < b.state ? -1 : 1))).toEqual([
    { kind: 'redrive', state: 'failed', jobs: 1 },
    { kind: 'redrive', state: 'running', jobs: 1 },
  ]);
  // partitions of an hour's class are 10 minutes long, and two are made ahead
  expect(seen.partitions_ahead_seconds).toBeGreaterThan(1000);
  expect(seen.partitions_ahead_seconds).toBeLessThanOrEqual(1800);
  // partitions are shown as what they are parts of
  const tables = seen.dead_tuples.map((each) => each.table);
  expect(tables).toEqual(expect.arrayContaining(['queue', 'event', 'attempt', 'dead_letter']));
  expect(tables.filter((table) => /\d/.test(table))).toEqual([]);
});

test('a class of which there is no partition is not ahead at all', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  await sql`update broker.topic set retention_class = 8760 where id = ${topic}`.execute(db);
  expect((await observeDatabase(db)).partitions_ahead_seconds).toBeLessThan(1);
  await sql`update broker.topic set retention_class = 1 where id = ${topic}`.execute(db);
});

describe('what others do', () => {
  test('a transaction that is only open is old, and holds back vacuum once it has a snapshot', async () => {
    await using session = await openSession();
    // by the same clock, just before and just after
    const age = async (): Promise<number> => {
      const sql =
        'select extract(epoch from clock_timestamp() - xact_start)::float8 as age from pg_stat_activity where pid = $1';
      const [row] = await query<{ age: number }>(database.url, sql, [pid]);
      return row!.age;
    };
    const { rows } = await session.query<{ pid: number }>('select pg_backend_pid() as pid');
    const pid = rows[0]!.pid;
    await session.query('begin');
    let before = await age();
    const open = await observeDatabase(database.db);
    expect(open.oldest_transaction_seconds).toBeGreaterThan(before);
    expect(open.oldest_transaction_seconds).toBeLessThan(await age());
    expect(open.xmin_age_seconds).toBeLessThan(open.oldest_transaction_seconds!);
    await session.query('commit');
    await session.query('begin isolation level repeatable read');
    await session.query('select 1');
    before = await age();
    const held = await observeDatabase(database.db);
    expect(held.xmin_age_seconds).toBeGreaterThan(before);
    expect(held.xmin_age_seconds).toBeLessThan(await age());
    await session.query('commit');
  });

  test('who waits for a lock is counted', async () => {
    await using holder = await openSession();
    await using waiter = await openSession();
    await holder.query('begin');
    await holder.query('lock table broker.idempotency_key in access exclusive mode');
    const waiting = waiter.query('select from broker.idempotency_key');
    await eventually(async () => {
      expect((await observeDatabase(database.db)).lock_waits).toBe(1);
    });
    await holder.query('rollback');
    await waiting;
    expect((await observeDatabase(database.db)).lock_waits).toBe(0);
  });

  test('without the right to see all statistics what is of others is absent, and nothing fails', async () => {
    const role = `broker_blind_${process.pid}`;
    await query(database.url, `create role ${role} login password 'blind-0123456789'`);
    await query(database.url, `grant usage on schema broker to ${role}`);
    await query(database.url, `grant select on all tables in schema broker to ${role}`);
    await query(database.url, `grant execute on all functions in schema broker to ${role}`);
    const url = new URL(database.url);
    url.username = role;
    url.password = 'blind-0123456789';
    await query(database.url, `grant connect on database ${url.pathname.slice(1)} to ${role}`);
    const blind = createDatabase({
      url: url.href,
      applicationName: 'blind',
      poolMax: 1,
      statementTimeoutMs: 5000,
    });
    try {
      const seen = await observeDatabase(blind.db);
      expect(seen).toMatchObject({
        oldest_transaction_seconds: null,
        xmin_age_seconds: null,
        replicas: [],
      });
      expect(seen.connections).toBeGreaterThan(0);
      expect(seen.size_bytes).toBeGreaterThan(0);
      expect(seen.dead_tuples.length).toBeGreaterThan(0);
    } finally {
      await blind.close();
      await query(database.url, `drop owned by ${role}`);
      await query(database.url, `drop role ${role}`);
    }
  });
});

test('a slot whose replica is not connected shows how much WAL is kept for it', async () => {
  const slot = `broker_observe_${process.pid}`;
  await query(database.url, `select pg_create_physical_replication_slot($1, true)`, [slot]);
  try {
    await aTopic(database.db);
    await eventually(async () => {
      const { replicas } = await observeDatabase(database.db);
      const own = replicas.find(({ replica }) => replica === slot);
      expect(own).toEqual({
        replica: slot,
        lag_bytes: expect.any(Number) as number,
        lag_seconds: null,
      });
      expect(own?.lag_bytes).toBeGreaterThan(0);
    });
  } finally {
    await query(database.url, `select pg_drop_replication_slot($1)`, [slot]);
  }
});

test('the queue is not read, however much is in it', async () => {
  const topic = await aTopic(database.db);
  await aSubscription(database.db, topic);
  await publishMany(database.db, topic, 100);
  const { db } = database.another();
  const scans = async (): Promise<unknown> => {
    // what this connection did is told with its next statement
    await sql`select pg_stat_force_next_flush()`.execute(db);
    const { rows } = await sql`
      select relname, seq_scan, idx_scan from pg_stat_user_tables
       where relname = 'queue' or relname ~ '^(event|attempt)_' order by 1`.execute(db);
    return rows;
  };
  await scans();
  const before = await scans();
  await observeDatabase(db);
  expect(await scans()).toEqual(before);
});
