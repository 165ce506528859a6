import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { countDeadLetters, readBacklog, sampleBacklog } from '#db/backlog.ts';
import { aSubscription, aTopic, publishMany } from '../support/factory.ts';
import { claimSome, openVerbDatabase, settleAll, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

const makeStale = () =>
  sql`update broker.backlog_sampling set sampled_at = clock_timestamp() - interval '6 seconds'`.execute(
    database.db,
  );

test('only active subscriptions with back-pressure count, and the fullest is named', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  await db.updateTable('topic').set({ max_backlog: 5 }).where('id', '=', topic).execute();
  await aSubscription(db, topic, { name: 'half', filter: { exact: { type: 'b' } } });
  await aSubscription(db, topic, { name: 'fullest' });
  const paused = await aSubscription(db, topic, { name: 'paused' });
  const free = await aSubscription(db, topic, { name: 'free' });
  await db.updateTable('subscription').set({ state: 'paused' }).where('id', '=', paused).execute();
  await db
    .updateTable('subscription')
    .set({ backpressure: false })
    .where('id', '=', free)
    .execute();
  await publishMany(db, topic, 5, { type: 'b' });
  await publishMany(db, topic, 2, { type: 'a' });
  await makeStale();
  expect(await readBacklog(db)).toEqual({ isStale: true, full: [] });
  expect(await sampleBacklog(db)).toBe(true);
  expect(await readBacklog(db)).toEqual({
    isStale: false,
    full: [
      {
        is_stale: false,
        topic_id: topic,
        subscription: 'fullest',
        waiting_events: 7,
        max_backlog: 5,
      },
    ],
  });
});

test('dead letters are counted apart, and a sample keeps the count', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic);
  await publishMany(db, topic, 3);
  const counted = async () => {
    await countDeadLetters(db);
    await makeStale();
    await sampleBacklog(db);
    const rows = await db
      .selectFrom('backlog_sample')
      .select('dead_letters')
      .where('subscription_id', '=', subscription)
      .execute();
    return rows.map((row) => row.dead_letters);
  };
  expect(await counted()).toEqual(['0']);
  await settleAll(db, topic, await claimSome(db, topic, subscription, 2), { outcome: 'rejected' });
  expect(await counted()).toEqual(['2']);
  await db.deleteFrom('dead_letter').where('subscription_id', '=', subscription).execute();
  expect(await counted()).toEqual(['0']);
});

test('of many callers one samples', async () => {
  await makeStale();
  const sampled = await Promise.all(Array.from({ length: 4 }, () => sampleBacklog(database.db)));
  expect(sampled.filter(Boolean)).toHaveLength(1);
  expect(await sampleBacklog(database.db)).toBe(false);
});

test('regression: after the clock was set back nobody sampled until it had caught up, and the old sample counted as fresh', async () => {
  const { db } = database;
  await sql`update broker.backlog_sampling set sampled_at = clock_timestamp() + interval '1 hour'`.execute(
    db,
  );
  await sql`update broker.backlog_sample set sampled_at = clock_timestamp() + interval '1 hour'`.execute(
    db,
  );
  expect((await readBacklog(db)).isStale).toBe(true);
  expect(await sampleBacklog(db)).toBe(true);
  expect((await readBacklog(db)).isStale).toBe(false);
  const ahead = await db
    .selectFrom('backlog_sample')
    .select('subscription_id')
    .where('sampled_at', '>', sql<string>`clock_timestamp()`)
    .execute();
  expect(ahead).toEqual([]);
});
