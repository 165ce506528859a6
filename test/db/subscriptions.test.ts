import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  deleteSubscription,
  findSubscription,
  listSubscriptions,
  type NewSubscription,
  putSubscription,
} from '#db/subscriptions.ts';
import { aTopic } from '../support/factory.ts';
import { schedule } from '../support/schedule.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase(8);
  await aTopic(database.db, { name: 'orders' });
  await aTopic(database.db, { name: 'other' });
});
afterAll(() => database[Symbol.asyncDispose]());

function pull(name: string, topic = 'orders'): NewSubscription {
  const settings = {
    filter: { exact: { type: 'a', source: '/s' } },
    visibility_timeout_seconds: 30,
    max_attempts: 10,
    minimum_backoff_ms: 1000,
    maximum_backoff_ms: 60_000,
    backoff_multiplier: 2,
    backpressure: true,
    on_expiry: 'drop',
  } as const;
  return { name, topic, type: 'pull', settings };
}

test('a subscription that is put often at once is made once', async () => {
  const put = await Promise.all(
    Array.from({ length: 16 }, () => putSubscription(database.db, pull('one'))),
  );
  const statuses = put.map(({ status }) => status);
  expect(statuses.filter((status) => status === 'created')).toHaveLength(1);
  expect(statuses.filter((status) => status === 'updated')).toHaveLength(15);
});

test('one that is being made waits for the deletion of its topic, and is then refused', async () => {
  for (const [end, status] of [
    ['commit', 'topic_not_found'],
    ['rollback', 'created'],
  ] as const) {
    await aTopic(database.db, { name: `parent-${end}` });
    const result = await schedule(
      database,
      (transaction) =>
        sql`update broker.topic set state = 'deleted' where name = ${`parent-${end}`}`.execute(
          transaction,
        ),
      (db) => putSubscription(db, pull(`child-${end}`, `parent-${end}`)),
      end,
    );
    expect(result).toMatchObject({ waited: true, second: { status } });
  }
});

test('its topic never changes, and a put that is refused changes nothing', async () => {
  await putSubscription(database.db, pull('fixed'));
  const refused = await putSubscription(database.db, {
    ...pull('fixed', 'other'),
    settings: { ...pull('').settings, max_attempts: 3 },
  });
  expect(refused).toEqual({ status: 'immutable' });
  expect(await findSubscription(database.db, 'fixed')).toMatchObject({
    topic: 'orders',
    max_attempts: 10,
    filter: { exact: { type: 'a', source: '/s' } },
  });
});

test('a deleted one is not found, nor listed; its name makes a new one', async () => {
  const first = await putSubscription(database.db, pull('brief'));
  expect(await deleteSubscription(database.db, 'brief')).toEqual({ status: 'deleted' });
  expect(await deleteSubscription(database.db, 'brief')).toEqual({ status: 'not_found' });
  expect(await findSubscription(database.db, 'brief')).toBeUndefined();
  const listed = await listSubscriptions(database.db, { limit: 250 });
  expect(listed.map(({ name }) => name)).not.toContain('brief');
  const second = await putSubscription(database.db, pull('brief'));
  expect(second.status).toBe('created');
  expect('id' in first && 'id' in second && first.id !== second.id).toBe(true);
});
