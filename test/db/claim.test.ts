import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { claim } from '#db/claim.ts';
import { faultOf } from '#db/errors.ts';
import { aSubscription, aTopic, aWorker, anEvent, publishMany } from '../support/factory.ts';
import { publishBatch } from '#db/publish.ts';
import {
  claimSome,
  openVerbDatabase,
  queueRows,
  settleAll,
  type VerbDatabase,
} from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

async function setUp(events: number, overrides = {}) {
  const topic = await aTopic(database.db);
  const subscription = await aSubscription(database.db, topic, overrides);
  const ids = await publishMany(database.db, topic, events);
  return { db: database.db, topic, subscription, ids };
}

test('a claim leases whole entries: generation and attempt go up, the events come along', async () => {
  const { db, topic, subscription, ids } = await setUp(150);
  const events = await claimSome(db, topic, subscription, 1000);
  expect(events.map((event) => event.event_id).toSorted()).toEqual(ids.toSorted());
  const rows = await queueRows(db, subscription);
  expect(rows.map((row) => [row.generation, row.attempt, row.lease_expires_at === null])).toEqual([
    [1, 1, false],
    [1, 1, false],
  ]);
  expect(
    events.every((event) => !event.more && event.attempt === 1 && event.generation === 1),
  ).toBe(true);
  expect(await claimSome(db, topic, subscription, 1000)).toEqual([]);
});

test('a claimer with room for 10 splits an entry of 100, and the other 90 can be claimed at once', async () => {
  const { db, topic, subscription } = await setUp(100);
  const first = await claimSome(db, topic, subscription, 10);
  expect(first.map((event) => event.ordinal)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  expect(first.every((event) => event.more)).toBe(true);
  const rows = await queueRows(db, subscription);
  expect(rows.map((row) => [row.event_count, row.attempt, row.generation])).toEqual([
    [10, 1, 1],
    [90, 0, 0],
  ]);
  expect(rows[1]?.available_at).toBe(rows[0]?.available_at);
  expect((rows[0]?.bytes ?? 0) + (rows[1]?.bytes ?? 0)).toBeGreaterThan(0);
  const second = await claimSome(db, topic, subscription, 100, { mark: first[0]?.due_at ?? '' });
  expect(second.map((event) => event.ordinal)).toEqual(
    Array.from({ length: 90 }, (_, i) => i + 10),
  );
  expect(second[0]?.attempt).toBe(1);
});

test('room counts bytes too, but one event is always handed out', async () => {
  const topic = await aTopic(database.db);
  const subscription = await aSubscription(database.db, topic);
  await publishBatch(database.db, topic, [
    { events: Array.from({ length: 4 }, () => anEvent({ bytes: 100_000 })) },
  ]);
  expect(await claimSome(database.db, topic, subscription, 100, { bytes: 1 })).toHaveLength(1);
  expect(await claimSome(database.db, topic, subscription, 100, { bytes: 200_000 })).toHaveLength(
    2,
  );
  expect(await claimSome(database.db, topic, subscription, 100, { bytes: 1_000_000 })).toHaveLength(
    1,
  );
});

test('two claimers with room for 60 over 200 waiting get 60 each, neither waiting for the other', async () => {
  const { db, topic, subscription } = await setUp(200);
  await using other = database.another();
  await using third = database.another();
  // the first claim stays open in a transaction
  await db.transaction().execute(async (trx) => {
    expect(await claimSome(trx, topic, subscription, 60)).toHaveLength(60);
    expect(await claimSome(other.db, topic, subscription, 60)).toHaveLength(60);
  });
  const left = await claimSome(third.db, topic, subscription, 1000);
  expect(left).toHaveLength(80);
});

test('several subscriptions are claimed in one call, each with its own room', async () => {
  const topic = await aTopic(database.db);
  const one = await aSubscription(database.db, topic);
  const two = await aSubscription(database.db, topic);
  await publishMany(database.db, topic, 100);
  const worker = await aWorker(database.db);
  const events = await claim(
    database.db,
    topic,
    [
      { subscription_id: one, events: 7, bytes: 1 << 20 },
      { subscription_id: two, events: 30, bytes: 1 << 20 },
    ],
    { leaseMs: 1000, leasedBy: worker },
  );
  expect(events.filter((event) => event.subscription_id === one)).toHaveLength(7);
  expect(events.filter((event) => event.subscription_id === two)).toHaveLength(30);
  const { rows } = await sql<{ leased_by: string }>`select distinct leased_by from broker.queue
    where lease_expires_at is not null and topic_id = ${topic}`.execute(database.db);
  expect(rows).toEqual([{ leased_by: worker }]);
});

test.each(['paused', 'disabled', 'deleted'] as const)(
  'nothing is claimed of a subscription that is %s',
  async (state) => {
    const { db, topic, subscription } = await setUp(3);
    await db.updateTable('subscription').set({ state }).where('id', '=', subscription).execute();
    expect(await claimSome(db, topic, subscription, 10)).toEqual([]);
  },
);

test('what is not due yet is not claimed', async () => {
  const { db, topic, subscription } = await setUp(0);
  await publishBatch(db, topic, [{ events: [anEvent({ delay_ms: 60_000 }), anEvent()] }]);
  expect((await claimSome(db, topic, subscription, 10)).map((event) => event.ordinal)).toEqual([1]);
});

test('an isolated event travels alone', async () => {
  const { db, topic, subscription } = await setUp(0);
  for (let i = 0; i < 5; i++) await publishMany(db, topic, 2);
  const { rows } = await sql<{
    id: string;
  }>`update broker.queue set isolated = true, ordinals = '{0}', event_count = 1
    where subscription_id = ${subscription} and id in (
      select id from broker.queue where subscription_id = ${subscription} order by available_at, id offset 1 limit 2)
    returning id`.execute(db);
  expect(rows).toHaveLength(2);
  const sizes: number[] = [];
  for (;;) {
    const events = await claimSome(db, topic, subscription, 100);
    if (events.length === 0) break;
    sizes.push(events.length);
    expect(events.some((event) => event.isolated) && events.length > 1).toBe(false);
    await settleAll(db, topic, events, { outcome: 'acked' });
  }
  expect(sizes).toEqual([2, 1, 1, 4]);
});

test('the rest of a split keeps its due time, attempt, generation and isolation', async () => {
  const { db, topic, subscription } = await setUp(10);
  await sql`update broker.queue set attempt = 2, generation = 4, deferrals = 1 where subscription_id = ${subscription}`.execute(
    db,
  );
  await claimSome(db, topic, subscription, 4);
  const rows = await queueRows(db, subscription);
  expect(rows.map((row) => [row.event_count, row.attempt, row.generation, row.isolated])).toEqual([
    [4, 3, 5, false],
    [6, 2, 4, false],
  ]);
  expect(rows[0]?.available_at).toBe(rows[1]?.available_at);
});

test('regression: a claim without room failed, and took those of other subscriptions with it', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const [full, free] = [await aSubscription(db, topic), await aSubscription(db, topic)];
  await publishMany(db, topic, 3);
  const rooms = [
    { subscription_id: full, events: 0, bytes: 1000 },
    { subscription_id: free, events: 10, bytes: 1000 },
  ];
  const events = await claim(db, topic, rooms, { leaseMs: 1000 });
  expect(events.map((event) => event.subscription_id)).toEqual([free, free, free]);
});

test('a worker that was marked as gone, or never was one, claims nothing', async () => {
  const { db, topic, subscription } = await setUp(3);
  const worker = await aWorker(db);
  const room = { subscription_id: subscription, events: 1, bytes: 1 << 20 };
  const claimAs = (leasedBy: string) => claim(db, topic, [room], { leaseMs: 1000, leasedBy });
  expect(await claimAs(worker)).toHaveLength(1);
  await db
    .updateTable('worker')
    .set({ gone_at: sql`clock_timestamp()` })
    .where('instance', '=', worker)
    .execute();
  for (const name of [worker, 'nobody']) {
    const fault = await claimAs(name).then(() => 'none', faultOf);
    expect(fault).toBe('worker_gone');
  }
  expect(await claimSome(db, topic, subscription, 10)).toHaveLength(2);
});

test('a worker gets isolated events several at a time, because it sends each by itself', async () => {
  const { db, topic, subscription } = await setUp(3);
  const worker = await aWorker(db);
  await sql`update broker.queue set isolated = true where subscription_id = ${subscription}`.execute(
    db,
  );
  await publishMany(db, topic, 3);
  const room = { subscription_id: subscription, events: 10, bytes: 1 << 20 };
  expect(await claim(db, topic, [room], { leaseMs: 1000, leasedBy: worker })).toHaveLength(6);
});
