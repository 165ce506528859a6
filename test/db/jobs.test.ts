import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createRedriveJob, findJob } from '#db/jobs.ts';
import { redrive } from '#db/redrive.ts';
import { aSubscription, aTerm, aTopic, publishMany } from '../support/factory.ts';
import { claimSome, openVerbDatabase, settleAll, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase(8);
});
afterAll(() => database[Symbol.asyncDispose]());

async function aGraveyard(count: number): Promise<[number, number]> {
  const topicId = await aTopic(database.db);
  const subscriptionId = await aSubscription(database.db, topicId);
  await publishMany(database.db, topicId, count);
  const events = await claimSome(database.db, topicId, subscriptionId, count);
  await settleAll(database.db, topicId, events, { outcome: 'rejected' });
  return [topicId, subscriptionId];
}

test('however many ask at once, there is one job per subscription', async () => {
  const of = await aGraveyard(3);
  const answers = await Promise.all(
    Array.from({ length: 8 }, () => createRedriveJob(database.db, ...of)),
  );
  const created = answers.filter(({ status }) => status === 'created');
  expect(created).toHaveLength(1);
  const id = created[0]?.status === 'created' ? created[0].id : '';
  expect(answers.filter(({ status }) => status === 'unfinished')).toEqual(
    Array.from({ length: 7 }, () => ({ status: 'unfinished', id })),
  );
  expect(await findJob(database.db, id)).toMatchObject({ state: 'waiting', total: 3, done: 0 });
  const term = await aTerm(database.db);
  await redrive(database.db, of[0], term, { jobId: id, limit: 100 });
  expect(await findJob(database.db, id)).toMatchObject({ state: 'succeeded', total: 3, done: 3 });
  expect(await createRedriveJob(database.db, ...of)).toMatchObject({ status: 'created' });
});

test('there is none for a subscription that is deleted, or of another topic', async () => {
  const [topicId, subscriptionId] = await aGraveyard(1);
  const none = { status: 'subscription_not_found' };
  expect(await createRedriveJob(database.db, topicId + 1, subscriptionId)).toEqual(none);
  await sql`update broker.subscription set state = 'deleted' where id = ${subscriptionId}`.execute(
    database.db,
  );
  expect(await createRedriveJob(database.db, topicId, subscriptionId)).toEqual(none);
});
