import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Database } from '#db/client.ts';
import { disableSubscription, findPushSubscription } from '#db/push-subscriptions.ts';
import { deleteSubscription, findSubscription, switchSubscription } from '#db/subscriptions.ts';
import { createWakeups } from '#db/wakeups.ts';
import { aPushSubscription } from '../support/a-push-subscription.ts';
import { eventually } from '../support/eventually.ts';
import { aSubscription, aTopic } from '../support/factory.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
let db: Database;
let topicId: number;
beforeAll(async () => {
  database = await openVerbDatabase();
  db = database.db;
  topicId = await aTopic(db, { name: 'orders' });
});
afterAll(() => database[Symbol.asyncDispose]());

const endpoint = 'https://hooks.example/orders';

describe('findPushSubscription', () => {
  test('tells a worker all that it needs, the secret too', async () => {
    const sealed = Buffer.alloc(32, 9);
    const { id, name } = await aPushSubscription(db, {
      topic: 'orders',
      mode: 'raw',
      headers: { 'x-shop': 'a "b"' },
      timeout_ms: 5000,
      retry_client_errors: true,
      secret: { key_id: 'abcdef01', sealed },
    });
    expect(await findPushSubscription(db, id)).toEqual({
      id,
      name,
      topic_id: topicId,
      topic: 'orders',
      state: 'active',
      endpoint,
      mode: 'raw',
      headers: { 'x-shop': 'a "b"' },
      timeout_ms: 5000,
      retry_client_errors: true,
      key_id: 'abcdef01',
      sealed,
    });
  });

  test('finds one that is paused, and none that pulls, is deleted, or never was', async () => {
    const { id, name } = await aPushSubscription(db, { topic: 'orders' });
    await switchSubscription(db, name, 'pause');
    expect(await findPushSubscription(db, id)).toMatchObject({ state: 'paused' });
    await deleteSubscription(db, name);
    expect(await findPushSubscription(db, id)).toBeUndefined();
    expect(await findPushSubscription(db, await aSubscription(db, topicId))).toBeUndefined();
    expect(await findPushSubscription(db, 2_000_000_000)).toBeUndefined();
  });
});

describe('disableSubscription', () => {
  test('stops one with its reason and tells everybody; resume undoes it', async () => {
    const { id, name } = await aPushSubscription(db, { topic: 'orders' });
    await using wakeups = createWakeups({ db, directUrl: database.url, applicationName: 'test' });
    await eventually(() => expect(wakeups.listening).toBe(true));
    const heard: string[] = [];
    wakeups.onChange((kind, changed) => heard.push(`${kind} ${changed}`));
    expect(await disableSubscription(db, { id, endpoint, reason: 'it is gone (410)' })).toBe(true);
    expect(await findSubscription(db, name)).toMatchObject({
      state: 'disabled',
      disabled_reason: 'it is gone (410)',
    });
    await eventually(() => expect(heard).toContain(`subscription ${name}`));
    expect(await switchSubscription(db, name, 'pause')).toMatchObject({ state: 'disabled' });
    expect(await switchSubscription(db, name, 'resume')).toMatchObject({
      state: 'active',
      disabled_reason: null,
    });
  });

  test('changes nothing of one that has another endpoint by now, or is not active', async () => {
    const { id, name } = await aPushSubscription(db, { topic: 'orders' });
    const gone = { id, endpoint, reason: 'gone' };
    expect(await disableSubscription(db, { ...gone, endpoint: 'https://old.example/' })).toBe(
      false,
    );
    await switchSubscription(db, name, 'pause');
    expect(await disableSubscription(db, gone)).toBe(false);
    expect(await findSubscription(db, name)).toMatchObject({
      state: 'paused',
      disabled_reason: null,
    });
    await switchSubscription(db, name, 'resume');
    expect(await disableSubscription(db, gone)).toBe(true);
    // the first reason stays
    expect(await disableSubscription(db, { ...gone, reason: 'again' })).toBe(false);
    await deleteSubscription(db, name);
    expect(await disableSubscription(db, gone)).toBe(false);
  });
});
