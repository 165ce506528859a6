import { sql } from 'kysely';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { findPushSecret } from '#db/push-secrets.ts';
import {
  changeSubscription,
  deleteSubscription,
  findSubscription,
  listSubscriptions,
  type NewSubscription,
  putSubscription,
  switchSubscription,
} from '#db/subscriptions.ts';
import { aTopic, publishMany } from '../support/factory.ts';
import { schedule } from '../support/schedule.ts';
import { claimSome, openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

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
    retry_client_errors: false,
    backpressure: true,
    on_expiry: 'drop',
    push: null,
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

describe('a push subscription', () => {
  const push = {
    endpoint: 'https://hooks.example/orders',
    mode: 'raw',
    headers: { 'X-Shop': 'a' },
    timeout_ms: 15_000,
  } as const;
  const pushed = (name: string, seals: (id: number) => string): NewSubscription => ({
    ...pull(name),
    type: 'push',
    settings: { ...pull('').settings, push },
    sealSecret: (id) => ({ key_id: null, sealed: Buffer.from(seals(id)) }),
  });

  test('has its secret sealed for the id that it gets, once', async () => {
    const made = await putSubscription(
      database.db,
      pushed('pushed', (id) => `first of ${id}`),
    );
    expect(made).toMatchObject({ status: 'created', subscription: { push } });
    const id = 'id' in made ? made.id : 0;
    const again = await putSubscription(
      database.db,
      pushed('pushed', () => {
        throw new Error('sealed again');
      }),
    );
    expect(again).toMatchObject({ status: 'updated', id });
    expect((await findPushSecret(database.db, id))?.sealed.toString()).toBe(`first of ${id}`);
  });

  test('is not made where its secret cannot be sealed', async () => {
    const failing = pushed('unsealed', () => {
      throw new Error('no');
    });
    await expect(putSubscription(database.db, failing)).rejects.toThrow('no');
    expect(await findSubscription(database.db, 'unsealed')).toBeUndefined();
  });

  test('loses its secret when it is deleted', async () => {
    const made = await putSubscription(
      database.db,
      pushed('secretive', () => 's'),
    );
    const id = 'id' in made ? made.id : 0;
    expect(await findPushSecret(database.db, id)).toBeDefined();
    await deleteSubscription(database.db, 'secretive');
    expect(await findPushSecret(database.db, id)).toBeUndefined();
  });
});

describe('a change', () => {
  test('waits for another one, and sees what that made', async () => {
    await putSubscription(database.db, pull('changed'));
    const { waited } = await schedule(
      database,
      (transaction) =>
        sql`update broker.subscription set max_attempts = 3 where name = 'changed'`.execute(
          transaction,
        ),
      (db) =>
        changeSubscription(db, 'changed', (current) => ({
          ...pull('').settings,
          max_attempts: current.max_attempts,
          visibility_timeout_seconds: 5,
        })),
    );
    expect(waited).toBe(true);
    expect(await findSubscription(database.db, 'changed')).toMatchObject({
      max_attempts: 3,
      visibility_timeout_seconds: 5,
    });
  });

  test('that throws leaves it as it was; of none there is nothing to change', async () => {
    await putSubscription(database.db, pull('kept'));
    const before = await findSubscription(database.db, 'kept');
    const change = (): never => {
      throw new Error('no');
    };
    await expect(changeSubscription(database.db, 'kept', change)).rejects.toThrow('no');
    expect(await findSubscription(database.db, 'kept')).toEqual(before);
    expect(await changeSubscription(database.db, 'nowhere', change)).toBeUndefined();
  });
});

test('pause and resume switch an active one, and what is paused is not claimed', async () => {
  await putSubscription(database.db, pull('switched'));
  const { id = 0, topic_id: topicId = 0 } = (await findSubscription(database.db, 'switched')) ?? {};
  await publishMany(database.db, topicId, 1, { type: 'a', source: '/s' });
  expect(await switchSubscription(database.db, 'switched', 'pause')).toMatchObject({
    state: 'paused',
  });
  expect(await claimSome(database.db, topicId, id, 1)).toEqual([]);
  expect(await switchSubscription(database.db, 'switched', 'resume')).toMatchObject({
    state: 'active',
  });
  expect(await claimSome(database.db, topicId, id, 1)).toHaveLength(1);
  expect(await switchSubscription(database.db, 'nowhere', 'pause')).toBeUndefined();
});
