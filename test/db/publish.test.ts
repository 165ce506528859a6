import { sql } from 'kysely';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { publishBatch, type NewEvent, type PublishRequest } from '#db/publish.ts';
import { aSubscription, aTopic, anEvent } from '../support/factory.ts';
import { claimSome, openVerbDatabase, queueRows, type VerbDatabase } from '../support/verbs.ts';

let database: VerbDatabase;
beforeAll(async () => {
  database = await openVerbDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

const hash = (text: string): Buffer => Buffer.from(text.padEnd(16, '.').slice(0, 16));

async function publish(topicId: number, ...requests: PublishRequest[]) {
  const result = await publishBatch(database.db, topicId, requests);
  if (result.status !== 'published') throw new Error(result.status);
  return result;
}

async function storedEvents(topicId: number): Promise<number> {
  const { rows } = await sql<{
    n: number;
  }>`select count(*)::int as n from broker.event where topic_id = ${topicId}`.execute(database.db);
  return rows[0]?.n ?? 0;
}

test('events of several requests become one entry per subscription, and ids that sort by time', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const subscriptions = [await aSubscription(db, topic), await aSubscription(db, topic)];
  const result = await publish(topic, { events: [anEvent(), anEvent()] }, { events: [anEvent()] });
  const ids = result.results.flat().map((each) => BigInt(each.id));
  expect(ids[1]).toBe((ids[0] ?? 0n) + 1n);
  expect(ids[2]).toBe((ids[0] ?? 0n) + 2n);
  expect(result.woken.toSorted((a, b) => a - b)).toEqual(subscriptions);
  for (const subscription of subscriptions) {
    expect((await queueRows(db, subscription)).map((row) => row.ordinals)).toEqual([[0, 1, 2]]);
  }
  const { rows } = await sql<{
    near: boolean;
  }>`select abs(extract(epoch from broker.id_time(${String((ids[0] ?? 0n) >> 10n)}::bigint)
    - clock_timestamp())) < 60 as near`.execute(db);
  expect(rows[0]?.near).toBe(true);
});

test('an entry holds at most 100 events and 1 MiB', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const byCount = await aSubscription(db, topic);
  await publish(topic, { events: Array.from({ length: 250 }, () => anEvent()) });
  expect((await queueRows(db, byCount)).map((row) => row.event_count)).toEqual([100, 100, 50]);

  const other = await aTopic(db);
  const byBytes = await aSubscription(db, other);
  await publish(other, { events: Array.from({ length: 20 }, () => anEvent({ bytes: 200_000 })) });
  const rows = await queueRows(db, byBytes);
  expect(rows.every((row) => row.bytes <= 1 << 20)).toBe(true);
  expect(rows.flatMap((row) => row.ordinals).toSorted((a, b) => a - b)).toEqual(
    Array.from({ length: 20 }, (_, i) => i),
  );
  expect(rows.length).toBeLessThanOrEqual(6);
});

test('a filter takes what matches in every named attribute, extensions included, and nothing else', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const byType = await aSubscription(db, topic, { filter: { exact: { type: 'b' } } });
  const bySource = await aSubscription(db, topic, {
    filter: { exact: { type: 'b', source: '/shop' } },
  });
  const byExtension = await aSubscription(db, topic, {
    filter: { exact: { region: 'eu', count: '3' } },
  });
  const byKey = await aSubscription(db, topic, { filter: { exact: { partitionkey: 'k' } } });
  await publish(topic, {
    events: [
      anEvent({ type: 'a', source: '/shop', ordering_key: 'k' }),
      anEvent({ type: 'b' }),
      anEvent({ type: 'b', source: '/shop' }),
      anEvent({ type: 'c', extensions: '{"region":"eu","count":3}' }),
      anEvent({ type: 'c', extensions: '{"region":"eu"}' }),
    ],
  });
  const ordinals = async (id: number) => (await queueRows(db, id)).flatMap((row) => row.ordinals);
  expect(await ordinals(byType)).toEqual([1, 2]);
  expect(await ordinals(bySource)).toEqual([2]);
  expect(await ordinals(byExtension)).toEqual([3]);
  expect(await ordinals(byKey)).toEqual([0]);
});

test('a delayed event waits in an entry of its own, kept in a class that outlives the delay', async () => {
  const { db } = database;
  const topic = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
  const subscription = await aSubscription(db, topic);
  const result = await publish(topic, {
    events: [
      anEvent(),
      anEvent({ delay_ms: 7_200_000 }),
      anEvent({ available_at: '2020-01-01T00:00:00Z' }),
    ],
  });
  expect(result.woken).toEqual([subscription]);
  const rows = await queueRows(db, subscription);
  expect(rows.map((row) => row.ordinals)).toEqual(expect.arrayContaining([[0, 2], [1]]));
  const delayed = rows.find((row) => row.ordinals[0] === 1);
  expect(delayed?.due_in).toBeGreaterThan(7000);
  expect(await claimSome(db, topic, subscription, 10)).toHaveLength(2);
  const { rows: events } = await sql<{
    retention_class: number;
    alive: boolean;
  }>`select retention_class,
    expires_at >= published_at + interval '3 hours' as alive from broker.event
    where topic_id = ${topic} and retention_class <> 1`.execute(db);
  expect(events).toEqual([{ retention_class: 24, alive: true }]);
});

test('an event more than 30 days ahead takes its whole request with it, and no other', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  await aSubscription(db, topic);
  const result = await publish(
    topic,
    { events: [anEvent(), anEvent({ available_at: '2200-01-01T00:00:00Z' })] },
    { events: [anEvent()] },
  );
  expect(result.results.map((each) => each.map((one) => one.outcome))).toEqual([
    ['too_far', 'too_far'],
    ['published'],
  ]);
  expect(await storedEvents(topic)).toBe(1);
});

test('a topic that is gone takes nothing', async () => {
  const topic = await aTopic(database.db, { state: 'deleted' });
  expect(await publishBatch(database.db, topic, [{ events: [anEvent()] }])).toEqual({
    status: 'topic_not_found',
  });
});

test('data keeps its very text', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const subscription = await aSubscription(db, topic);
  const texts = [
    '{"b":1.0,"a":12345678901234567890.10,"b": 2}',
    ' "x" '.trim(),
    'null',
    '1e999999',
    '[1,\n 2]',
    '"\\u00e4\\/"',
  ];
  await publish(topic, {
    events: [...texts.map((data) => anEvent({ data })), { type: 'none', bytes: 4 }],
  });
  expect((await claimSome(db, topic, subscription, 10)).map((event) => event.data)).toEqual([
    ...texts,
    null,
  ]);
});

test('a missing partition is made on the way', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  await sql`update broker.topic set retention_class = 8760, retention_seconds = 31536000 where id = ${topic}`.execute(
    db,
  );
  await sql`select broker.drop_partition(term, 8760::smallint, starts_at, ends_at, event_partition, attempt_partition)
    from broker.partition, broker.leader where retention_class = 8760`.execute(db);
  await publish(topic, { events: [anEvent()] });
  expect(await storedEvents(topic)).toBe(1);
});

interface Keyed {
  readonly key?: string;
  readonly fingerprint?: string;
}
const request = ({ key, fingerprint = 'same' }: Keyed, ...events: NewEvent[]): PublishRequest => ({
  events: events.length === 0 ? [anEvent()] : events,
  ...(key === undefined ? {} : { key: hash(`r${key}`), fingerprint: hash(fingerprint) }),
});
const event = ({ key, fingerprint = 'same' }: Keyed, overrides: Partial<NewEvent> = {}): NewEvent =>
  anEvent({
    ...overrides,
    ...(key === undefined ? {} : { key: hash(`e${key}`), fingerprint: hash(fingerprint) }),
  });

test('a request repeated under its key is answered with the first ids, in the same call or a later one', async () => {
  const topic = await aTopic(database.db);
  const subscription = await aSubscription(database.db, topic);
  const first = await publish(
    topic,
    request({ key: '1' }, anEvent(), anEvent()),
    request({ key: '1' }, anEvent(), anEvent()),
  );
  const ids = first.results[0]?.map((each) => each.id);
  expect(first.results[1]).toEqual(ids?.map((id) => ({ id, outcome: 'duplicate' })));
  const later = await publish(
    topic,
    request({}, anEvent()),
    request({ key: '1' }, anEvent(), anEvent()),
  );
  expect(later.results[0]?.[0]?.outcome).toBe('published');
  expect(later.results[1]).toEqual(ids?.map((id) => ({ id, outcome: 'duplicate' })));
  expect(await storedEvents(topic)).toBe(3);
  expect((await queueRows(database.db, subscription)).flatMap((row) => row.ordinals)).toEqual([
    0, 1, 0,
  ]);
});

test('a key with another body is a conflict and stores nothing', async () => {
  const topic = await aTopic(database.db);
  await publish(topic, request({ key: '1' }));
  const result = await publish(
    topic,
    request({ key: '1', fingerprint: 'other' }),
    request({ key: '2' }),
  );
  expect(result.results.map((each) => each[0]?.outcome)).toEqual(['request_conflict', 'published']);
  expect(await storedEvents(topic)).toBe(2);
});

test('events with keys are stored once each, within one call and over several', async () => {
  const topic = await aTopic(database.db);
  const first = await publish(topic, {
    events: [
      event({ key: 'a' }),
      event({ key: 'a' }),
      event({}),
      event({ key: 'a', fingerprint: 'x' }),
    ],
  });
  const outcomes = first.results[0]?.map((each) => each.outcome);
  expect(outcomes).toEqual(['published', 'duplicate', 'published', 'conflict']);
  expect(first.results[0]?.[1]?.id).toBe(first.results[0]?.[0]?.id);
  const second = await publish(topic, { events: [event({}), event({ key: 'a' })] });
  expect(second.results[0]?.[1]).toEqual({ id: first.results[0]?.[0]?.id, outcome: 'duplicate' });
  expect(await storedEvents(topic)).toBe(3);
});

test('a repeated request whose events carry keys of their own is answered from those', async () => {
  const topic = await aTopic(database.db);
  const before = await publish(topic, { events: [event({ key: 'a' })] });
  const first = await publish(
    topic,
    request({ key: '1' }, event({ key: 'a' }), event({ key: 'b' }), event({})),
  );
  const again = await publish(
    topic,
    request({ key: '1' }, event({ key: 'a' }), event({ key: 'b' }), event({})),
  );
  expect(first.results[0]?.map((each) => each.outcome)).toEqual([
    'duplicate',
    'published',
    'published',
  ]);
  expect(again.results[0]?.map((each) => each.id)).toEqual(
    first.results[0]?.map((each) => each.id),
  );
  expect(again.results[0]?.[0]?.id).toBe(before.results[0]?.[0]?.id);
  expect(again.results[0]?.every((each) => each.outcome === 'duplicate')).toBe(true);
});

test('a key that has expired is free again', async () => {
  const topic = await aTopic(database.db, { deduplication_seconds: 60 });
  const first = await publish(topic, request({ key: '1' }));
  await sql`update broker.idempotency_key set expires_at = clock_timestamp() where topic_id = ${topic}`.execute(
    database.db,
  );
  const second = await publish(topic, request({ key: '1', fingerprint: 'other' }));
  expect(second.results[0]?.[0]?.outcome).toBe('published');
  expect(second.results[0]?.[0]?.id).not.toBe(first.results[0]?.[0]?.id);
});

test('64 publishes of one key at once, over 8 connections, store one event', async () => {
  const topic = await aTopic(database.db);
  const replicas = Array.from({ length: 8 }, () => database.another());
  const results = await Promise.all(
    Array.from({ length: 64 }, (_, i) =>
      publishBatch((replicas[i % 8] ?? database.another()).db, topic, [request({ key: '1' })]),
    ),
  );
  const answers = results.flatMap((each) =>
    each.status === 'published' ? each.results.flat() : [],
  );
  expect(answers).toHaveLength(64);
  expect(new Set(answers.map((each) => each.id)).size).toBe(1);
  expect(answers.filter((each) => each.outcome === 'published')).toHaveLength(1);
  expect(await storedEvents(topic)).toBe(1);
  await Promise.all(replicas.map((replica) => replica.close()));
});

test('regression: a key whose first request was refused was not kept for the next request of the same batch', async () => {
  const topic = await aTopic(database.db);
  const far = anEvent({ available_at: '2200-01-01T00:00:00Z' });
  const result = await publish(
    topic,
    request({ key: '1', fingerprint: 'far' }, far),
    request({ key: '1' }),
    request({ key: '1' }),
  );
  const outcomes = result.results.map((each) => each[0]?.outcome);
  expect(outcomes).toEqual(['too_far', 'published', 'duplicate']);
  const later = await publish(topic, request({ key: '1' }));
  expect(later.results[0]).toEqual([{ id: result.results[1]?.[0]?.id, outcome: 'duplicate' }]);
  expect(await storedEvents(topic)).toBe(1);
});

test('regression: a batch whose delays need two partitions that are missing failed', async () => {
  const { db } = database;
  const topic = await aTopic(db, { retention_seconds: 3600, retention_class: 1 });
  const subscription = await aSubscription(db, topic);
  const days = 86_400_000;
  await publish(topic, {
    events: [anEvent(), anEvent({ delay_ms: 20 * days }), anEvent({ delay_ms: 30 * days })],
  });
  expect(await storedEvents(topic)).toBe(3);
  expect(await queueRows(db, subscription)).toHaveLength(3);
});

test('regression: more events in one call than an id has ordinals for were stored, and those past 1,024 never handed out', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const events = Array.from({ length: 1025 }, () => anEvent());
  await expect(publishBatch(db, topic, [{ events }])).rejects.toThrow('more than 1000 events');
  expect(await storedEvents(topic)).toBe(0);
});

test('regression: with a deduplication of 0 s, what was put into one batch was a duplicate and what came later was not', async () => {
  const topic = await aTopic(database.db, { deduplication_seconds: 0 });
  const result = await publish(
    topic,
    request({ key: '1' }, event({ key: 'a' })),
    request({ key: '1' }, event({ key: 'a' })),
  );
  expect(result.results.flat().map((each) => each.outcome)).toEqual(['published', 'published']);
  expect(await storedEvents(topic)).toBe(2);
});

test('regression: 1,000 events for 300 filters, and for 700 subscriptions without one, ran into the statement timeout', async () => {
  const { db } = database;
  const topic = await aTopic(db);
  const filters = Array.from({ length: 300 }, (_, i) => ({ exact: { source: `/${i}` } }));
  const filtered = await Promise.all(filters.map((filter) => aSubscription(db, topic, { filter })));
  const all = await Promise.all(Array.from({ length: 700 }, () => aSubscription(db, topic)));
  const events = Array.from({ length: 1000 }, (_, i) => anEvent({ source: `/${i % 300}` }));
  const { woken } = await publish(topic, { events });
  expect(woken).toHaveLength(1000);
  const taken = await queueRows(db, filtered[7] ?? 0);
  expect(taken.map((row) => row.ordinals)).toEqual([[7, 307, 607, 907]]);
  expect(await queueRows(db, all[7] ?? 0)).toHaveLength(10);
});
