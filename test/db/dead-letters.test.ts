import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  deleteDeadLetter,
  findDeadLetter,
  listDeadLetters,
  purgeDeadLetters,
} from '#db/dead-letters.ts';
import { aSubscription, aTopic, publishMany } from '../support/factory.ts';
import { claimSome, openVerbDatabase, settleAll, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

/** A subscription with so many dead letters. */
async function aGraveyard(count: number, data = '1') {
  const topicId = await aTopic(database.db);
  const subscriptionId = await aSubscription(database.db, topicId);
  await publishMany(database.db, topicId, count, { data });
  const events = await claimSome(database.db, topicId, subscriptionId, count, { bytes: 1 << 30 });
  await settleAll(database.db, topicId, events, { outcome: 'rejected', error: 'no good' });
  return [topicId, subscriptionId] as const;
}

test('a page ends at its limit, or at its bytes, but has one at least', async () => {
  const of = await aGraveyard(5, `"${'x'.repeat(98)}"`);
  const all = await listDeadLetters(database.db, ...of, { limit: 10 });
  expect(all).toMatchObject({ hasMore: false, letters: [{}, {}, {}, {}, {}] });
  const ids = all.letters.map(({ id }) => id);
  const page = async (options: { limit: number; bytesMax?: number; after?: string }) => {
    const { letters, hasMore } = await listDeadLetters(database.db, ...of, options);
    return [letters.map(({ id }) => id), hasMore];
  };
  expect(await page({ limit: 5 })).toEqual([ids, false]);
  expect(await page({ limit: 2 })).toEqual([ids.slice(0, 2), true]);
  expect(await page({ limit: 10, bytesMax: 250 })).toEqual([ids.slice(0, 2), true]);
  expect(await page({ limit: 10, bytesMax: 1 })).toEqual([ids.slice(0, 1), true]);
  expect(await page({ limit: 10, after: ids[3] ?? '' })).toEqual([ids.slice(4), false]);
  expect(await page({ limit: 10, after: ids[4] ?? '' })).toEqual([[], false]);
});

test('one is found and deleted in its own subscription alone', async () => {
  const of = await aGraveyard(1);
  const other = await aGraveyard(1);
  const { letters } = await listDeadLetters(database.db, ...of, { limit: 1 });
  const id = letters[0]?.id ?? '';
  expect(await findDeadLetter(database.db, ...other, id)).toBeUndefined();
  expect(await deleteDeadLetter(database.db, ...other, id)).toEqual({ status: 'not_found' });
  expect(await findDeadLetter(database.db, ...of, id)).toMatchObject({ id, reason: 'rejected' });
  expect(await deleteDeadLetter(database.db, ...of, id)).toEqual({ status: 'deleted' });
});

test('a purge goes by chunks, leaves other subscriptions alone, and waits for no redrive', async () => {
  const of = await aGraveyard(25);
  const other = await aGraveyard(1);
  await using redrive = database.another();
  const transaction = await redrive.db.startTransaction().execute();
  await sql`select from broker.dead_letter where subscription_id = ${of[1]} order by id limit 3 for update`.execute(
    transaction,
  );
  expect(await purgeDeadLetters(database.db, ...of, 10)).toBe(22);
  await transaction.rollback().execute();
  expect(await purgeDeadLetters(database.db, ...of)).toBe(3);
  expect(await purgeDeadLetters(database.db, ...of)).toBe(0);
  const { letters } = await listDeadLetters(database.db, ...other, { limit: 10 });
  expect(letters).toHaveLength(1);
});
