import { afterAll, beforeAll, expect, test } from 'vitest';
import { extend } from '#db/extend.ts';
import { aSubscription, aTopic, publishMany } from '../support/factory.ts';
import {
  claimSome,
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

async function leased(events: number, leaseMs = 30_000) {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic);
  await publishMany(db, topic, events);
  const claimed = await claimSome(db, topic, subscription, 1000, { leaseMs });
  return {
    db,
    topic,
    subscription,
    claimed,
    leases: claimed.map((event) => ({ ...event, topic_id: topic })),
  };
}

const secondsUntil = (time: string | null): number => (Date.parse(time ?? '') - Date.now()) / 1000;

test('extend moves the deadline of the whole row, and never to an earlier time', async () => {
  const { db, topic, subscription, leases } = await leased(3);
  const [longer] = await extend(db, topic, subscription, {
    leases: leases.slice(0, 1),
    leaseMs: 600_000,
  });
  expect(secondsUntil(longer ?? null)).toBeGreaterThan(590);
  const shorter = await extend(db, topic, subscription, { leases: leases, leaseMs: 1000 });
  expect(shorter).toEqual([longer, longer, longer]);
  expect((await queueRows(db, subscription))[0]?.lease_expires_at).toBe(longer);
});

test('a lease that is settled, taken back or of another generation cannot be extended', async () => {
  const { db, topic, subscription, claimed, leases } = await leased(2);
  await settleAll(db, topic, claimed.slice(0, 1), { outcome: 'acked' });
  const [gone, alive] = await extend(db, topic, subscription, { leases: leases, leaseMs: 60_000 });
  expect(gone).toBeNull();
  expect(alive).not.toBeNull();
  expect(
    await extend(db, topic, subscription, {
      leases: leases.map((lease) => ({ ...lease, generation: 2 })),
      leaseMs: 60_000,
    }),
  ).toEqual([null, null]);
  await db
    .updateTable('subscription')
    .set({ state: 'deleted' })
    .where('id', '=', subscription)
    .execute();
  expect(await extend(db, topic, subscription, { leases: leases, leaseMs: 60_000 })).toEqual([
    null,
    null,
  ]);
});

test('a lease that ran out but was not taken back yet can still be extended', async () => {
  const { db, topic, subscription, leases } = await leased(1);
  await expireLeases(db, subscription);
  const [deadline] = await extend(db, topic, subscription, { leases: leases, leaseMs: 60_000 });
  expect(secondsUntil(deadline ?? null)).toBeGreaterThan(50);
});
