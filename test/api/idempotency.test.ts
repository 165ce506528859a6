import { afterAll, beforeAll, expect, test } from 'vitest';
import { createDatabase } from '#db/client.ts';
import { publishBatch } from '#db/publish.ts';
import { requestKey } from '../../apps/api/publish/idempotency.ts';
import { startApp, type TestApp } from '../support/app.ts';
import { cloneDatabase } from '../support/database.ts';
import { aTopicWithReader, problemOf } from '../support/topic-with-reader.ts';

let database: Awaited<ReturnType<typeof cloneDatabase>>;
let app: TestApp;
beforeAll(async () => {
  database = await cloneDatabase();
  app = await startApp(database.url);
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
});

const setUp = (settings?: object) => aTopicWithReader(app, settings);

test('64 parallel publishes with one key: one event, one id; another body is 422', async () => {
  const { publish, receive } = await setUp();
  const headers = { 'idempotency-key': 'k-1' };
  const answers = await Promise.all(
    Array.from({ length: 64 }, () => publish({ type: 't', data: 1 }, headers)),
  );
  expect(answers.every((answer) => answer.status === 202)).toBe(true);
  expect(new Set(answers.map((answer) => answer.json.id)).size).toBe(1);
  expect(answers.filter((answer) => answer.json.duplicate === false)).toHaveLength(1);
  expect(await receive({ max_messages: 1000 })).toHaveLength(1);
  const other = await publish({ type: 't', data: 2 }, headers);
  expect(problemOf(other)).toEqual([422, 'idempotency_conflict']);
  const quoted = await publish({ type: 't', data: 1 }, { 'idempotency-key': '"k-1"' });
  expect(quoted.json).toEqual({ id: answers[0]!.json.id, duplicate: true });
});

test('keys that are none', async () => {
  const { publish } = await setUp();
  for (const key of ['', ' ', 'a b', 'ä', '"open', '""', 'x'.repeat(256), '"a", "b"']) {
    const answer = await publish({ type: 't' }, { 'idempotency-key': key });
    expect(problemOf(answer), key).toEqual([422, 'invalid_request']);
  }
  for (const key of ['x'.repeat(255), '"a b"', '"a\\"b"', 'a,b']) {
    expect((await publish({ type: 't' }, { 'idempotency-key': key })).status, key).toBe(202);
  }
});

test("an event's own id: a repeat has the first id, other content is a conflict, of the event alone", async () => {
  const { publish, receive } = await setUp();
  const first = await publish({ type: 't', id: 'e-1', source: '/a', data: 1 });
  const answer = await publish([
    { type: 't', id: 'e-1', source: '/a', data: 1, delay_seconds: 5 },
    { type: 't', id: 'e-1', source: '/a', data: 2 },
    { type: 't', id: 'e-1', source: '/b', data: 2 },
  ]);
  expect(answer.status).toBe(202);
  expect(answer.json.results).toMatchObject([
    { id: first.json.id, duplicate: true },
    { code: 'idempotency_conflict', detail: expect.any(String) as string },
    { duplicate: false },
  ]);
  expect(problemOf(await publish({ type: 'u', id: 'e-1', source: '/a', data: 1 }))).toEqual([
    422,
    'idempotency_conflict',
  ]);
  expect(await receive({ max_messages: 1000 })).toHaveLength(2);
});

test('a topic may say that ids are only names', async () => {
  const { publish, receive } = await setUp({ deduplicate_event_ids: false });
  for (let i = 0; i < 2; i += 1)
    expect((await publish({ type: 't', id: 'e-1' })).json.duplicate).toBe(false);
  expect((await receive()).map((each) => each.event['id'])).toEqual(['e-1', 'e-1']);
});

test('a key whose first publish is held open: 409 for that one, 202 for its neighbours', async () => {
  const { topic, publish } = await setUp();
  const { id } = (await app.deps.directory.topic(topic))!;
  const body = '{"type":"t"}';
  await using other = createDatabase({
    url: database.url,
    applicationName: 'broker-test',
    poolMax: 1,
    statementTimeoutMs: 5000,
  });
  const held = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  const holder = other.db.transaction().execute(async (trx) => {
    await publishBatch(trx, id, [
      { events: [{ type: 't', bytes: 1 }], ...requestKey('held', Buffer.from(body)) },
    ]);
    held.resolve();
    await release.promise;
  });
  await held.promise;
  const answers = await Promise.all([
    publish(body, { 'idempotency-key': 'held' }),
    publish(body, { 'idempotency-key': 'free' }),
    publish(body),
    publish({ type: 't', id: 'e-1' }),
  ]);
  expect(answers.map((answer) => answer.status)).toEqual([409, 202, 202, 202]);
  expect(answers[0]!.json.code).toBe('idempotency_in_progress');
  expect(Number(answers[0]!.headers['retry-after'])).toBeGreaterThan(0);
  release.resolve();
  await holder;
  expect((await publish(body, { 'idempotency-key': 'held' })).json.duplicate).toBe(true);
});
