import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { faultOf } from '#db/errors.ts';
import { overdueTopics, reap } from '#db/reap.ts';
import {
  aSubscription,
  aTerm,
  aTopic,
  publishMany,
  type SubscriptionOverrides,
} from '../support/factory.ts';
import {
  claimSome,
  deadLetters,
  expireLeases,
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

async function setUp(events: number, overrides: SubscriptionOverrides = {}) {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic, overrides);
  const ids = await publishMany(db, topic, events);
  const term = await aTerm(db);
  const reapNow = async () => reap(db, topic, await aTerm(db), { limit: 100, since: '-infinity' });
  return { db, topic, subscription, ids, term, reapNow };
}

test('a lease that ran out waits again at once: generation up, attempt kept, attempt written', async () => {
  const { db, topic, subscription, reapNow } = await setUp(3);
  const claimed = await claimSome(db, topic, subscription, 10);
  expect(await reapNow()).toMatchObject({ expired_events: 0 });
  expect(await overdueTopics(db, '-infinity')).not.toContain(topic);
  await expireLeases(db, subscription);
  expect(await overdueTopics(db, '-infinity')).toContain(topic);
  expect(await reapNow()).toMatchObject({
    expired_events: 3,
    dead_events: 0,
    woken: [subscription],
    more: false,
  });
  expect(
    (await queueRows(db, subscription)).map((row) => [
      row.generation,
      row.attempt,
      row.lease_expires_at,
      row.isolated,
    ]),
  ).toEqual([[2, 1, null, false]]);
  expect(await settleAll(db, topic, claimed, { outcome: 'acked' })).toEqual([
    'lease_lost',
    'lease_lost',
    'lease_lost',
  ]);
  const { rows } = await sql<{ outcome: string; ordinals: number[]; generation: number }>`
    select outcome, ordinals, generation from broker.attempt where topic_id = ${topic}`.execute(db);
  expect(rows).toEqual([{ outcome: 'lease_expired', ordinals: [0, 1, 2], generation: 1 }]);
});

test('from the second time without an answer its events come back one by one, isolated', async () => {
  const { db, topic, subscription, reapNow } = await setUp(3);
  for (let i = 0; i < 2; i++) {
    await claimSome(db, topic, subscription, 10);
    await expireLeases(db, subscription);
    await reapNow();
  }
  expect(
    (await queueRows(db, subscription)).map((row) => [
      row.ordinals,
      row.isolated,
      row.attempt,
      row.generation,
    ]),
  ).toEqual([
    [[0], true, 2, 4],
    [[1], true, 2, 4],
    [[2], true, 2, 4],
  ]);
});

test.each([3, 10])(
  'a consumer that dies on one event of 100, max_attempts %i: 1 dead letter, 99 acked, never one attempt more',
  async (max) => {
    const { db, topic, subscription, ids, reapNow } = await setUp(100, { max_attempts: max });
    const poison = ids[41];
    const acked = new Set<string>();
    let attemptsSeen = 0;
    while ((await queueRows(db, subscription)).length > 0) {
      const events = await claimSome(db, topic, subscription, 100);
      attemptsSeen = Math.max(attemptsSeen, ...events.map((event) => event.attempt));
      if (events.some((event) => event.event_id === poison)) {
        await expireLeases(db, subscription);
        await reapNow();
      } else {
        await settleAll(db, topic, events, { outcome: 'acked' });
        for (const event of events) acked.add(event.event_id);
      }
    }
    expect(acked.size).toBe(99);
    expect(await deadLetters(db, subscription)).toMatchObject([
      { event_id: poison, reason: 'max_attempts', attempts: max, last_error: 'lease expired' },
    ]);
    expect(attemptsSeen).toBe(max);
  },
);

test('what is settled, extended or of a deleted subscription is treated as such', async () => {
  const { db, topic, subscription, reapNow } = await setUp(2);
  const claimed = await claimSome(db, topic, subscription, 10);
  await settleAll(db, topic, claimed.slice(0, 1), { outcome: 'acked' });
  await expireLeases(db, subscription);
  await db
    .updateTable('subscription')
    .set({ state: 'deleted' })
    .where('id', '=', subscription)
    .execute();
  expect(await reapNow()).toMatchObject({ expired_events: 0, woken: [] });
  expect(await queueRows(db, subscription)).toEqual([]);
});

test('it says of which subscriptions how many died', async () => {
  const { db, topic, subscription, reapNow } = await setUp(2, { max_attempts: 1 });
  const [patient, other] = [
    await aSubscription(db, topic),
    await aSubscription(db, topic, { max_attempts: 1 }),
  ];
  await publishMany(db, topic, 3);
  for (const each of [subscription, patient, other]) {
    await claimSome(db, topic, each, 10);
    await expireLeases(db, each);
  }
  const reaped = await reapNow();
  expect(reaped).toMatchObject({ expired_events: 11, dead_events: 8, woken: [patient] });
  const dead = reaped.dead_subscription_ids.map((id, index) => [id, reaped.dead_counts[index]]);
  expect(new Map(dead as [number, number][])).toEqual(
    new Map([
      [subscription, 5],
      [other, 3],
    ]),
  );
});

test('the limit bounds one call and says that more is overdue', async () => {
  const { db, topic, subscription } = await setUp(0);
  for (let i = 0; i < 5; i++) await publishMany(db, topic, 1);
  await claimSome(db, topic, subscription, 10);
  await expireLeases(db, subscription);
  const term = await aTerm(db);
  expect(await reap(db, topic, term, { limit: 3, since: '-infinity' })).toMatchObject({
    expired_events: 3,
    more: true,
  });
  expect(await reap(db, topic, term, { limit: 3, since: '-infinity' })).toMatchObject({
    expired_events: 2,
    more: false,
  });
});

test('an older term is refused and changes nothing', async () => {
  const { db, topic, subscription, term } = await setUp(1);
  await claimSome(db, topic, subscription, 1);
  await expireLeases(db, subscription);
  await aTerm(db);
  const error = await reap(db, topic, term, { limit: 10, since: '-infinity' }).catch(
    (cause: unknown) => cause,
  );
  expect(faultOf(error)).toBe('term_over');
  expect((await queueRows(db, subscription))[0]?.lease_expires_at).not.toBeNull();
});
