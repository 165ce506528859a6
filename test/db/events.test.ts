import { afterAll, beforeAll, expect, test } from 'vitest';
import { findEvent, isId, listDeliveries } from '#db/events.ts';
import { publishBatch } from '#db/publish.ts';
import { anEvent, aSubscription, aTopic } from '../support/factory.ts';
import { claimSome, openVerbDatabase, settleAll, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

async function publishOne(topicId: number, overrides: Parameters<typeof anEvent>[0] = {}) {
  const result = await publishBatch(database.db, topicId, [{ events: [anEvent(overrides)] }]);
  return result.status === 'published' ? (result.results[0]?.[0]?.id ?? '') : '';
}

test('an event is found by its id, whichever class of retention it is in', async () => {
  const topicId = await aTopic(database.db, { retention_seconds: 3600, retention_class: 1 });
  const data = '{"b": 1.0, "a": 12345678901234567890}';
  const short = await publishOne(topicId, { data });
  // a delay puts it into a longer class
  const long = await publishOne(topicId, { delay_ms: 10 * 86_400_000 });
  expect(await findEvent(database.db, topicId, short)).toMatchObject({
    event_id: short,
    retention_class: 1,
    data,
  });
  expect((await findEvent(database.db, topicId, long))?.retention_class).toBeGreaterThan(1);
  const another = await aTopic(database.db);
  expect(await findEvent(database.db, another, short)).toBeUndefined();
});

test.each(['', '-1', '01', '1e3', 'abc', '9223372036854775808'])('%j is no id', async (text) => {
  expect(isId(text)).toBe(false);
  expect(await findEvent(database.db, 1, text)).toBeUndefined();
});

test('deliveries are told by subscription, with their attempts', async () => {
  const topicId = await aTopic(database.db);
  const acked = await aSubscription(database.db, topicId, { name: 'a-acked' });
  const dead = await aSubscription(database.db, topicId, { name: 'b-dead', max_attempts: 2 });
  await aSubscription(database.db, topicId, { name: 'c-waiting' });
  await aSubscription(database.db, topicId, { name: 'd-deleted', state: 'deleted' });
  const id = await publishOne(topicId);
  for (const error of ['first', 'second']) {
    const events = await claimSome(database.db, topicId, dead, 1);
    await settleAll(database.db, topicId, events, { outcome: 'nacked', delayMs: 0, error });
  }
  await settleAll(database.db, topicId, await claimSome(database.db, topicId, acked, 1), {
    outcome: 'acked',
  });
  await aSubscription(database.db, topicId, { name: 'e-later' });
  expect(await listDeliveries(database.db, topicId, id)).toMatchObject([
    { subscription: 'a-acked', state: 'acked', attempts: 1, dead_letter_id: null },
    { subscription: 'b-dead', state: 'dead', attempts: 2, last_error: 'second' },
    { subscription: 'c-waiting', state: 'waiting', attempts: 0, last_attempt_at: null },
  ]);
});
