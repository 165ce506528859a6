// Goal: the leases of a worker that is gone come back at once, those of one that lives never, and what it settles late changes nothing.
import { sql } from 'kysely';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { claim } from '#db/claim.ts';
import type { Database } from '#db/client.ts';
import { faultOf } from '#db/errors.ts';
import { findGoneWorkers, takeOver, topicsLeasedBy } from '#db/take-over.ts';
import { aSubscription, aTerm, aTopic, aWorker, publishMany } from '../support/factory.ts';
import { untilServerIsOld } from '../support/old-server.ts';
import {
  claimSome,
  deadLetters,
  openVerbDatabase,
  queueRows,
  settleAll,
  type VerbDatabase,
} from '../support/verbs.ts';

// Workers are of a whole database, so each test has its own.
let database: VerbDatabase;
let db: Database;
let term: string;
beforeEach(async () => {
  await database?.[Symbol.asyncDispose]();
  database = await openVerbDatabase();
  db = database.db;
  term = await aTerm(db);
  await electedAgo(60);
});
afterAll(() => database[Symbol.asyncDispose]());

beforeAll(untilServerIsOld);

async function electedAgo(seconds: number): Promise<void> {
  await sql`update broker.leader set elected_at = clock_timestamp() - ${seconds} * interval '1 second'`.execute(
    db,
  );
}

async function leasedBy(worker: string, events = 3, maxAttempts = 10) {
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic, { max_attempts: maxAttempts });
  await publishMany(db, topic, events);
  const room = { subscription_id: subscription, events: 1000, bytes: 8 << 20 };
  const claimed = await claim(db, topic, [room], { leaseMs: 360_000, leasedBy: worker });
  return { topic, subscription, claimed };
}

/** Holds the session lock of a worker until it is ended. */
async function lockOf(worker: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: database.url });
  client.on('error', () => undefined);
  await client.connect();
  await client.query(
    `select pg_advisory_lock(broker.worker_lock_class(), (select lock_key from broker.worker where instance = $1))`,
    [worker],
  );
  return client;
}

const gone = async (): Promise<string[]> => findGoneWorkers(db, term, 10_000);

test('one whose lock is free is gone, and its leases wait again at once', async () => {
  const worker = await aWorker(db);
  const { topic, subscription, claimed } = await leasedBy(worker);
  expect(await gone()).toEqual([worker]);
  expect(await topicsLeasedBy(db, [worker])).toEqual([topic]);
  expect(await takeOver(db, topic, term, { worker, limit: 100 })).toEqual({
    expired_events: 3,
    dead_events: 0,
    woken: [subscription],
    more: false,
    dead_subscription_ids: [],
    dead_counts: [],
  });
  expect(await queueRows(db, subscription)).toMatchObject([
    { generation: 2, attempt: 1, lease_expires_at: null, isolated: false },
  ]);
  expect(await topicsLeasedBy(db, [worker])).toEqual([]);
  expect(await settleAll(db, topic, claimed, { outcome: 'acked' })).toEqual(
    claimed.map(() => 'lease_lost'),
  );
  const { rows } =
    await sql<object>`select outcome, worker, error from broker.attempt where topic_id = ${topic}`.execute(
      db,
    );
  expect(rows).toEqual([{ outcome: 'lease_expired', worker, error: 'the worker is gone' }]);
});

test('one that holds its lock and says that it lives is not, whatever the age of its leases', async () => {
  const worker = await aWorker(db);
  const lock = await lockOf(worker);
  expect(await gone()).toEqual([]);
  // the neighbour's lock is not its own
  const neighbour = await aWorker(db);
  expect(await gone()).toEqual([neighbour]);
  await lock.end();
  await expect.poll(gone).toEqual(expect.arrayContaining([worker, neighbour]));
});

test('one that has been silent for more than 10 s is gone although its lock is held', async () => {
  const worker = await aWorker(db);
  const lock = await lockOf(worker);
  const silentFor = (seconds: number) =>
    sql`update broker.worker set heartbeat_at = clock_timestamp() - ${seconds} * interval '1 second'`.execute(
      db,
    );
  await silentFor(8);
  expect(await gone()).toEqual([]);
  await silentFor(11);
  expect(await gone()).toEqual([worker]);
  await lock.end();
});

test('processes that are no workers have no lock, and nothing to take over', async () => {
  await db
    .insertInto('worker')
    .values({
      instance: 'api-1',
      service: 'api',
      version: '0',
      host: 'h',
      pid: 1,
      heartbeat_at: sql`clock_timestamp() - interval '1 hour'`,
    })
    .execute();
  expect(await gone()).toEqual([]);
});

test('nobody is marked in the first 5 s of a term, and who was marked before still is', async () => {
  const before = await aWorker(db);
  expect(await gone()).toEqual([before]);
  const worker = await aWorker(db);
  await electedAgo(4);
  expect(await gone()).toEqual([before]);
  await electedAgo(6);
  expect(new Set(await gone())).toEqual(new Set([before, worker]));
});

test('its leases are looked for as long as a claim of it may still be committed, and no longer', async () => {
  const worker = await aWorker(db);
  expect(await gone()).toEqual([worker]);
  const goneFor = (seconds: number) =>
    sql`update broker.worker set gone_at = clock_timestamp() - ${seconds} * interval '1 second'`.execute(
      db,
    );
  await goneFor(8);
  expect(await gone()).toEqual([worker]);
  await goneFor(11);
  expect(await gone()).toEqual([]);
});

describe('a claim that was under way when its worker was marked', () => {
  test('is found when it is committed, and the worker claims no more', async () => {
    const worker = await aWorker(db);
    const other = database.another();
    const { topic, subscription } = await leasedBy(worker, 2);
    await publishMany(db, topic, 5);
    const room = { subscription_id: subscription, events: 10, bytes: 1 << 20 };
    const options = { leaseMs: 360_000, leasedBy: worker };
    await other.db.transaction().execute(async (slow) => {
      expect(await claim(slow, topic, [room], options)).toHaveLength(5);
      expect(await gone()).toEqual([worker]);
      expect(await takeOver(db, topic, term, { worker, limit: 100 })).toMatchObject({
        expired_events: 2,
      });
    });
    expect(await gone()).toEqual([worker]);
    expect(await takeOver(db, topic, term, { worker, limit: 100 })).toMatchObject({
      expired_events: 5,
    });
    expect(await claim(db, topic, [room], options).then(() => 'none', faultOf)).toBe('worker_gone');
  });
});

test('a heartbeat that waited for the mark sees it; one that came first keeps its worker alive', async () => {
  const worker = await aWorker(db);
  const lock = await lockOf(worker);
  const beat = (client: Database) =>
    client
      .updateTable('worker')
      .set({ heartbeat_at: sql`clock_timestamp()` })
      .where('instance', '=', worker)
      .where('gone_at', 'is', null)
      .returning('instance')
      .execute();
  await sql`update broker.worker set heartbeat_at = clock_timestamp() - interval '11 seconds'`.execute(
    db,
  );
  const other = database.another();
  // the heartbeat is under way while the reaper looks: the reaper waits for it, and looks again
  let marking: Promise<string[]> | undefined;
  await other.db.transaction().execute(async (slow) => {
    expect(await beat(slow)).toHaveLength(1);
    marking = gone();
    await expect.poll(async () => waiters()).toBe(1);
  });
  expect(await marking).toEqual([]);

  await sql`update broker.worker set heartbeat_at = clock_timestamp() - interval '11 seconds'`.execute(
    db,
  );
  let beating: Promise<unknown[]> | undefined;
  await other.db.transaction().execute(async (slow) => {
    expect(await findGoneWorkers(slow, term, 10_000)).toEqual([worker]);
    beating = beat(db);
    await expect.poll(async () => waiters()).toBe(1);
  });
  expect(await beating).toEqual([]);
  await lock.end();
});

async function waiters(): Promise<number> {
  const { rows } = await sql<{ n: number }>`select count(*)::int as n from pg_stat_activity
    where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0`.execute(db);
  return rows[0]?.n ?? 0;
}

test('the last attempt of an event ends as a dead letter, also when its worker dies each time', async () => {
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic, { max_attempts: 2 });
  await publishMany(db, topic, 3);
  for (let i = 0; i < 2; i += 1) {
    const worker = await aWorker(db);
    const room = { subscription_id: subscription, events: 10, bytes: 1 << 20 };
    expect(await claim(db, topic, [room], { leaseMs: 360_000, leasedBy: worker })).toHaveLength(3);
    await gone();
    await takeOver(db, topic, term, { worker, limit: 100 });
  }
  expect(await deadLetters(db, subscription)).toMatchObject([
    { reason: 'max_attempts', attempts: 2, last_error: 'the worker is gone' },
    { attempts: 2 },
    { attempts: 2 },
  ]);
});

test('a million leases of others cost a take-over nothing; it takes a chunk at a time and says that there is more', async () => {
  const worker = await aWorker(db);
  const { topic, subscription } = await leasedBy(worker, 500);
  expect(await takeOver(db, topic, term, { worker, limit: 2 })).toMatchObject({
    expired_events: 200,
    more: true,
  });
  // a pull consumer's lease belongs to nobody
  expect(await claimSome(db, topic, subscription, 100)).toHaveLength(100);
  expect(await takeOver(db, topic, term, { worker, limit: 10 })).toMatchObject({
    expired_events: 300,
    more: false,
  });
});

test('an old term takes nothing over', async () => {
  const worker = await aWorker(db);
  const { topic } = await leasedBy(worker);
  const old = term;
  await aTerm(db);
  expect(await findGoneWorkers(db, old, 10_000).then(() => 'none', faultOf)).toBe('term_over');
  expect(await takeOver(db, topic, old, { worker, limit: 1 }).then(() => 'none', faultOf)).toBe(
    'term_over',
  );
});
