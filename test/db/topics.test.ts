import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { deleteTopic, findTopic, likePatterns, listTopics, putTopic } from '#db/topics.ts';
import { schedule } from '../support/schedule.ts';
import { openVerbDatabase, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase(8);
});
afterAll(() => database[Symbol.asyncDispose]());

const settings = {
  retention_seconds: 3600,
  deduplication_seconds: 60,
  deduplicate_event_ids: true,
  max_backlog: 10,
};

test('a topic that is put often at once is made once', async () => {
  const put = await Promise.all(
    Array.from({ length: 16 }, () => putTopic(database.db, 'one', settings)),
  );
  expect(put.filter(({ status }) => status === 'created')).toHaveLength(1);
  expect(new Set(put.map(({ topic }) => topic.id)).size).toBe(1);
});

test('a put while the topic is being deleted makes a new one; while the deletion fails, it replaces', async () => {
  for (const [end, status] of [
    ['rollback', 'updated'],
    ['commit', 'created'],
  ] as const) {
    await putTopic(database.db, 'contested', settings);
    const result = await schedule(
      database,
      (transaction) =>
        sql`update broker.topic set state = 'deleted' where name = 'contested'`.execute(
          transaction,
        ),
      (db) => putTopic(db, 'contested', settings),
      end,
    );
    expect(result.waited).toBe(true);
    expect(result.second.status).toBe(status);
  }
});

test('a deletion waits for who is making a subscription, and then sees it', async () => {
  for (const [end, status] of [
    ['commit', 'has_subscriptions'],
    ['rollback', 'deleted'],
  ] as const) {
    const { topic } = await putTopic(database.db, `parent-${end}`, settings);
    const result = await schedule(
      database,
      async (transaction) => {
        await sql`select from broker.topic where id = ${topic.id} for share`.execute(transaction);
        await sql`insert into broker.subscription (topic_id, name, type, visibility_timeout_seconds, max_attempts,
            minimum_backoff_ms, maximum_backoff_ms, backoff_multiplier, backpressure)
          values (${topic.id}, ${`child-${end}`}, 'pull', 30, 10, 1000, 60000, 2, true)`.execute(
          transaction,
        );
      },
      (db) => deleteTopic(db, topic.name),
      end,
    );
    expect(result).toMatchObject({ waited: true, second: { status } });
  }
});

test('a deleted topic is not found, nor listed', async () => {
  await putTopic(database.db, 'brief', settings);
  expect(await deleteTopic(database.db, 'brief')).toEqual({ status: 'deleted' });
  expect(await deleteTopic(database.db, 'brief')).toEqual({ status: 'not_found' });
  expect(await findTopic(database.db, 'brief')).toBeUndefined();
  const listed = await listTopics(database.db, { limit: 250 });
  expect(listed.map(({ name }) => name)).not.toContain('brief');
});

test('patterns mean * alone', async () => {
  expect(likePatterns(['a*', 'b_c%', 'd\\'])).toEqual(['a%', 'b\\_c\\%', 'd\\\\']);
  for (const name of ['pat_1', 'patx1', 'pat_2']) await putTopic(database.db, name, settings);
  const listed = await listTopics(database.db, { limit: 10, patterns: ['pat_*'] });
  expect(listed.map(({ name }) => name)).toEqual(['pat_1', 'pat_2']);
});
